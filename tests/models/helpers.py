"""Small networks of every kind that is registered in timm, with values that are all their own."""

import timm
import torch
from torch import nn

from topodet import connectivity

# Name -> arguments that make it small.
NETWORKS = {
    "toponet_nano": {"nodes": (3, 4, 2, 3), "width": 4},
    "toponet50_ws": {"nodes": (5, 5, 5, 5), "width": 2},
    "resnet20_cifar": {},
    "resnet20_cifar_connected": {},
    "mobilenetv2_x1_connected": {"depths": (1, 2, 1, 3, 1, 1, 1)},
}
NAMES = list(NETWORKS)


def create(name, **kwargs):
    """Edge weights, biases and statistics that are all their own, so that nothing can be taken for another."""
    return scatter(timm.create_model(name, **{"num_classes": 5, **NETWORKS[name], **kwargs}))


@torch.no_grad()
def scatter(model):
    for wiring in connectivity.wirings(model).values():
        wiring.alpha.normal_(mean=1, std=0.3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.bias.normal_(std=0.2)
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.5, 1.5)
    return model


def image(size=64, channels=3, **kwargs):
    return torch.randn(2, channels, size, size, **kwargs)
