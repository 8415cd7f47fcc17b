"""Small networks of timm that `connect` takes, and how two networks are compared."""

import timm
import torch
from torch import nn

from topodet import connectivity

# Architecture -> arguments that make it small, edges of its runs (m branches: a complete graph of m + 2 nodes).
SMALL_VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2}
SMALL_SWIN = {"img_size": 64, "window_size": 4, "embed_dim": 12, "depths": (1, 2), "num_heads": (1, 2)}
NETWORKS = {
    "mobilenetv2_050": ({}, [3, 6, 10, 6, 6]),
    "mobilenetv3_small_050": ({}, [3, 6, 6, 6]),
    "tf_efficientnetv2_b0": ({"channel_multiplier": 0.25}, [3, 3, 3, 6, 15, 36]),
    "mobilenetv4_conv_small_050": ({}, [21, 21]),
    "regnetz_005": ({}, [10, 45, 28]),
    "regnetz_b16": ({"drop_path_rate": 0}, [3, 21, 78, 3]),
    "convnext_atto": ({"depths": (1, 2, 3, 1), "ls_init_value": 0.5}, [3, 6, 10, 3]),
    "convnextv2_atto": ({"depths": (1, 2, 3, 1)}, [3, 6, 10, 3]),
    "inception_next_atto": ({"depths": (1, 2, 1, 1)}, [3, 6, 3, 3]),
    "resnetv2_18": ({"channels": (16, 32, 48, 64), "stem_chs": 8}, [3, 3, 3, 3]),
    "resnetv2_50": ({"layers": (2, 2, 3, 1), "channels": (16, 32, 48, 64), "stem_chs": 8}, [3, 3, 6]),
    "nf_regnet_b0": ({}, [6, 21, 21]),
    "cs3darknet_focus_s": ({}, [3, 10, 15, 3]),
    "vit_tiny_patch16_224": ({**SMALL_VIT, "init_values": 0.5}, [28]),
    "beit_base_patch16_224": (SMALL_VIT, [28]),
    "eva02_tiny_patch14_224": (SMALL_VIT, [28]),
    "mixer_s32_224": ({"img_size": 64}, [153]),
    "swin_tiny_patch4_window7_224": (SMALL_SWIN, [6, 15]),
    "swinv2_tiny_window8_256": (SMALL_SWIN, [6, 15]),
    "poolformer_s12": ({}, [15, 15, 91, 15]),
}


def create(name, **kwargs):
    small, _ = NETWORKS[name]
    return randomize(timm.create_model(name, num_classes=5, **{"drop_path_rate": 0.3, **small, **kwargs}))


def randomize(model):
    """Weights far from initialization, where layer scales are tiny, norms do nothing and some heads are 0."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim <= 1 or len(parameter) == 5:
                parameter.add_(0.2 * torch.randn_like(parameter))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(std=0.2)
                module.running_var.uniform_(0.5, 1.5)
    return model


def image(name):
    size = NETWORKS[name][0].get("img_size", 64)
    return torch.randn(2, 3, size, size)


def scatter(model):
    """Make every edge weight its own."""
    for wiring in connectivity.wirings(model).values():
        nn.init.normal_(wiring.alpha, mean=1, std=0.3)
    return model


def run(model, x):
    """Outputs and gradients by parameter name, with the same draws of drop path each time."""
    model.zero_grad()
    torch.manual_seed(1)
    output = model(x)
    output.square().mean().backward()
    return output.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(ours, theirs, **tolerance):
    (output, gradients), (expected, expected_gradients) = ours, theirs
    torch.testing.assert_close(output, expected, **tolerance)
    for name, gradient in expected_gradients.items():
        torch.testing.assert_close(gradients[name], gradient, **tolerance)
