"""Small ResNets that `rewire` takes."""

import timm
import torch
from torch import nn

from topodet import connectivity

# Architecture -> arguments that make it small, nodes that compute in each stage, names of the activation after the
# addition and of the shortcut.
SMALL = {"layers": (2, 1, 2, 1), "channels": (8, 12, 16, 20)}
NETWORKS = {
    "resnet18": (SMALL, [4, 2, 4, 2], "act2", "downsample"),
    "seresnet18": (SMALL, [4, 2, 4, 2], "act2", "downsample"),
    "resnet50": (SMALL, [2, 1, 2, 1], "act3", "downsample"),
    "seresnext26d_32x4d": ({"layers": (1, 2, 1, 1)}, [1, 2, 1, 1], "act3", "downsample"),
    "regnety_002": ({}, [1, 1, 4, 7], "act3", "downsample"),
    "gernet_s": ({}, [1, 3, 7, 2, 1], "act", "shortcut"),
    "test_byobnet": ({}, [1, 1, 1, 1], "act", "shortcut"),
    "legacy_seresnet18": ({}, [4, 4, 4, 4], "relu", "downsample"),
    "legacy_seresnext26_32x4d": ({}, [2, 2, 2, 2], "relu", "downsample"),
    "skresnet18": (SMALL, [2, 1, 2, 1], "act", "downsample"),
    "resnest14d": ({}, [1, 1, 1, 1], "act3", "downsample"),
    "res2net50_26w_4s": ({"layers": (2, 1, 1, 1), "channels": (16, 24, 32, 40)}, [2, 1, 1, 1], "relu", "downsample"),
}


def create(name, **kwargs):
    small, *_ = NETWORKS[name]
    return randomize(timm.create_model(name, num_classes=5, **{**small, **kwargs}))


def randomize(model):
    """Normalisations and edge weights that are all their own; no branch that begins at 0."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, mean=1, std=0.2)
            nn.init.normal_(module.bias, std=0.2)
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.5, 1.5)
    for wiring in connectivity.wirings(model).values():
        nn.init.normal_(wiring.alpha, mean=0.7, std=0.3)
    return model


def image():
    return torch.randn(2, 3, 64, 64)
