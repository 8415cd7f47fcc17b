"""Blocks that activate after the addition, taken apart for `rewire`: what they add, and how they read.

`activation(shortcut(x) + f(x))` hands on no sum. Here the activation goes from behind the addition to those who read:
a node is activation -> convolution -> normalisation on a weighted sum (Eq. 1), what it adds is not activated. Where
a block has two 3x3 convolutions of one width, each of them is a node ("interval 2 to 1"); where its inner convolutions
have another width than its stream, the whole residual is one.
"""

from __future__ import annotations

from torch import Tensor, nn

from .residual import Residual, Table


def _apply(module: nn.Module | None, x: Tensor) -> Tensor:
    return x if module is None else module(x)


# timm's ResNets: ResNeXt, SE-ResNet, ECA-ResNet and so on are made of these two.


def _basic_first(block: nn.Module, x: Tensor) -> Tensor:
    return _apply(block.drop_path, block.drop_block(block.bn1(block.conv1(x))))


def _basic_second(block: nn.Module, x: Tensor) -> Tensor:
    x = block.bn2(block.conv2(block.act1(x)))
    return _apply(block.drop_path, _apply(block.se, x))


def _basic_obstacle(block: nn.Module) -> str | None:
    if block.conv1.out_channels != block.conv2.out_channels:
        return "its two convolutions differ in width, so their outputs cannot be summed"
    if not isinstance(block.aa, nn.Identity):
        return "its anti-aliasing shrinks the feature between its convolutions, so their outputs cannot be summed"
    return None


def _bottleneck(block: nn.Module, x: Tensor) -> Tensor:
    x = block.act1(block.bn1(block.conv1(x)))
    x = block.aa(block.act2(block.drop_block(block.bn2(block.conv2(x)))))
    return _apply(block.drop_path, _apply(block.se, block.bn3(block.conv3(x))))


REWIRED = Table(
    {
        "timm.models.resnet": {
            "BasicBlock": Residual(
                (_basic_first, _basic_second), _basic_obstacle, activation="act2", shortcut="downsample"
            ),
            "Bottleneck": Residual((_bottleneck,), activation="act3", shortcut="downsample"),
        },
    }
)
