"""Blocks that activate after the addition, split for `rewire`: what they add, and how they read the stream.

`activation(shortcut(x) + f(x))` does not return a sum. Here the activation moves from after the addition to the nodes
that read it: a node is activation -> convolution -> normalization on a weighted sum (Eq. 1), and its output is not
activated. If a block has two 3x3 convolutions of equal width, each is a node ("interval 2 to 1"). If its inner
convolutions have another width than its stream, or cannot be separated from their activations, the whole residual is
one node.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .residual import Residual, Table


@dataclass(frozen=True)
class _Series:
    """A branch that calls modules of the block one after the other; those that are None are skipped."""

    names: str

    def __call__(self, block: nn.Module, x: Tensor) -> Tensor:
        for name in self.names.split():
            module = getattr(block, name)
            if module is not None:
                x = module(x)
        return x


def _res2net(block: nn.Module, x: Tensor) -> Tensor:
    parts = block.relu(block.bn1(block.conv1(x))).split(block.width, 1)
    outputs: list[Tensor] = []
    for i, (conv, bn) in enumerate(zip(block.convs, block.bns)):
        x = parts[i] + outputs[-1] if outputs and not block.is_first else parts[i]
        outputs.append(block.relu(bn(conv(x))))
    if block.scale > 1:
        outputs.append(parts[-1] if block.pool is None else block.pool(parts[-1]))
    return _RES2NET_END(block, torch.cat(outputs, 1))


_RES2NET_END = _Series("drop_block conv3 bn3 se drop_path")


def _basic_obstacle(block: nn.Module) -> str | None:
    if block.conv1.out_channels != block.conv2.out_channels:
        return "its two convolutions differ in width, so their outputs cannot be summed"
    if not isinstance(block.aa, nn.Identity):
        return "its anti-aliasing shrinks the feature map between its convolutions, so their outputs cannot be summed"
    return None


def _may_be_linear(*, shortcut: str, activation: str) -> Callable[[nn.Module], str | None]:
    def obstacle(block: nn.Module) -> str | None:
        if isinstance(getattr(block, activation), nn.Identity):
            return "no activation follows its addition: topodet.models.connect connects it as it is"
        return "it was built without a shortcut" if getattr(block, shortcut) is None else None

    return obstacle


def _resnet(
    *branches: str, activation: str, obstacle: Callable[[nn.Module], str | None] = Residual.obstacle
) -> Residual:
    series = tuple(map(_Series, branches))
    return Residual(series, obstacle, activation=activation, shortcut="downsample", parts=branches)


def _byob(branch: str) -> Residual:
    obstacle = _may_be_linear(shortcut="shortcut", activation="act")
    return Residual((_Series(branch),), obstacle, activation="act", shortcut="shortcut")


_SENET = _resnet("conv1 bn1 relu conv2 bn2 relu conv3 bn3 se_module", activation="relu")

# Module -> class -> how it adds. ResNeXt, SE-ResNet, ECA-ResNet and so on are made of the first two.
_FAMILIES: dict[str, dict[str, Residual]] = {
    "timm.models.resnet": {
        "BasicBlock": _resnet(
            "conv1 bn1 drop_block drop_path",
            "act1 conv2 bn2 se drop_path",
            activation="act2",
            obstacle=_basic_obstacle,
        ),
        "Bottleneck": _resnet("conv1 bn1 act1 conv2 bn2 drop_block act2 aa conv3 bn3 se drop_path", activation="act3"),
    },
    "torchvision.models.resnet": {
        "BasicBlock": _resnet("conv1 bn1", "relu conv2 bn2", activation="relu"),
        "Bottleneck": _resnet("conv1 bn1 relu conv2 bn2 relu conv3 bn3", activation="relu"),
    },
    "timm.models.regnet": {
        "Bottleneck": _resnet(
            "conv1 conv2 se conv3 drop_path",
            activation="act3",
            obstacle=_may_be_linear(shortcut="downsample", activation="act3"),
        ),
    },
    "timm.models.byobnet": {
        "BasicBlock": _byob("conv1_kxk attn conv2_kxk attn_last drop_path"),
        "BottleneckBlock": _byob("conv1_1x1 conv2_kxk conv2b_kxk attn conv3_1x1 attn_last drop_path"),
        "DarkBlock": _byob("conv1_1x1 attn conv2_kxk attn_last drop_path"),
        "EdgeBlock": _byob("conv1_kxk attn conv2_1x1 attn_last drop_path"),
        "SelfAttnBlock": _byob("conv1_1x1 conv2_kxk self_attn post_attn conv3_1x1 drop_path"),
    },
    "timm.models.resnetv2": {
        "Bottleneck": _resnet("conv1 norm1 conv2 norm2 conv3 norm3 drop_path", activation="act3"),
    },
    "timm.models.res2net": {
        "Bottle2neck": Residual((_res2net,), activation="relu", shortcut="downsample"),
    },
    "timm.models.resnest": {
        "ResNestBottleneck": _resnet(
            "conv1 bn1 act1 avd_first conv2 bn2 drop_block act2 avd_last conv3 bn3 drop_path", activation="act3"
        ),
    },
    "timm.models.senet": {
        "SEBottleneck": _SENET,
        "SEResNetBottleneck": _SENET,
        "SEResNeXtBottleneck": _SENET,
        "SEResNetBlock": _resnet("conv1 bn1", "relu conv2 bn2 relu se_module", activation="relu"),
    },
    "timm.models.sknet": {
        "SelectiveKernelBasic": _resnet("conv1 conv2 se drop_path", activation="act"),
        "SelectiveKernelBottleneck": _resnet("conv1 conv2 conv3 se drop_path", activation="act"),
    },
    "timm.models.tresnet": {
        "BasicBlock": _resnet("conv1 conv2 se drop_path", activation="act"),
        "Bottleneck": _resnet("conv1 conv2 se conv3 drop_path", activation="act"),
    },
    "timm.models.cspnet": {
        "BottleneckBlock": Residual((_Series("conv1 conv2 attn2 conv3 attn3 drop_path"),), activation="act3"),
    },
}

REWIRED = Table(_FAMILIES)
