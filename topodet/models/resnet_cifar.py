"""ResNets for CIFAR, plain and with learned connectivity: both columns of the paper's Table 1 (arXiv 2008.08261).

The connected form is `rewire` of the plain one, with the same parameter names. A stage of n BasicBlocks becomes the
complete graph of 2n + 2 nodes: node 0, its input; nodes 1..2n, its 3x3 convolutions, each ReLU -> convolution -> BN of
the weighted sum of all earlier nodes (Eq. 1); node 2n + 1, its output, the weighted sum of all of them. Table 1 counts
the 2n that compute. Input and output are separate nodes because with all weights 1 the graph is the residual stream at
interval 1: a stage's input skips every convolution, and its output is the sum of all nodes.

The first node of stages 2 and 3 changes stride and width, and reads the stage's input directly; for the others the
input is its option-B projection, which has the new size. The stem keeps its ReLU, and a stage returns the ReLU of its
output, so a stage's input is always activated.

>>> import timm
>>> import topodet
>>> from topodet.complexity import parameters
>>> [parameters(timm.create_model(name)) for name in ("resnet20_cifar", "resnet20_cifar_connected")]
[(278324, 0), (278324, 84)]
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from timm.models import build_model_with_cfg, checkpoint_seq, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, downsample_conv
from torch import Tensor, nn

from ..errors import ConfigError
from .classifier import StagedClassifier, make_head
from .connected.connect import rewire
from .recompute import update_statistics_once
from .stage import NormLayer
from .trunk import check_out_indices, dilated, given, init_weights, make_norm_layer
from .wiring import EdgeWeights


class ResNetCifar(StagedClassifier):
    """He's ResNet for CIFAR (arXiv 1512.03385, section 4.2): [B, in_chans, H, W] to [B, num_classes].

    A 3x3 convolution to 16 channels, three stages of n BasicBlocks with 16, 32 and 64 channels at strides 1, 2 and 4,
    global average pooling and a linear layer: 6n + 2 layers. A shortcut on which stride and width change is a 1x1
    convolution with normalization (option B), which matches the parameter counts of Table 1.

    Args:
        depth: 6n + 2.
        in_chans: channels of the image.
        norm_layer: a name that timm knows, or a callable from channels to a module.
        num_classes: outputs of the classifier; 0 leaves it out and returns pooled features.
        global_pool: timm's pooling type.
        drop_rate: dropout before the classifier.
        output_stride: 1 or 2: stages beyond it do not stride, and are dilated instead. Larger values of timm change
            nothing, because the last stage has stride 4.
        device, dtype: device and dtype of the parameters.

    Raises:
        ConfigError: a depth that is not 6n + 2, or an invalid `output_stride`.
    """

    def __init__(
        self,
        *,
        depth: int,
        in_chans: int = 3,
        norm_layer: str | NormLayer = "batchnorm2d",
        num_classes: int = 100,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        output_stride: int = 32,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        factory = given(device=device, dtype=dtype)
        blocks, rest = divmod(depth - 2, 6)
        if blocks < 1 or rest:
            raise ConfigError(f"a ResNet for CIFAR has 6n + 2 layers: 8, 14, 20 and so on, got depth={depth}")
        if output_stride not in (1, 2, 4, 8, 16, 32):
            raise ConfigError(f"output_stride={output_stride!r}: use 1, 2 or 4 (no dilation); 8, 16 and 32 act as 4")
        norm = make_norm_layer(norm_layer)
        self.conv1 = nn.Conv2d(in_chans, 16, 3, padding=1, bias=False, **factory)
        self.bn1 = norm(16, **factory)
        self.act1 = nn.ReLU(inplace=True)
        plan = dilated((1, 2, 2), output_stride)
        self.layer1 = _stage(16, 16, blocks, norm_layer=norm, **plan[0], **factory)
        self.layer2 = _stage(16, 32, blocks, norm_layer=norm, **plan[1], **factory)
        self.layer3 = _stage(32, 64, blocks, norm_layer=norm, **plan[2], **factory)
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = 64
        self.head = make_head(self.num_features, num_classes, pool_type=global_pool, drop_rate=drop_rate, **factory)
        self.feature_info = [
            {"num_chs": 16 * 2**k, "reduction": min(2**k, output_stride), "module": f"layer{k + 1}"} for k in range(3)
        ]
        self.grad_checkpointing = False
        init_weights(self)

    def stage_features(self, x: Tensor) -> Iterator[Tensor]:
        """Yield the feature maps in turn, [B, 16, H, W], [B, 32, H / 2, W / 2] and [B, 64, H / 4, W / 4]."""
        x = self.act1(self.bn1(self.conv1(x)))
        for stage in [self.get_submodule(info["module"]) for info in self.feature_info]:
            x = checkpoint_seq(stage, x) if self.grad_checkpointing and self.training else stage(x)
            yield x

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of storing its activations (timm's switch)."""
        self.grad_checkpointing = enable
        if enable:
            update_statistics_once(self)

    def keep_stages(self, count: int) -> None:
        """Drop the stages after the first `count`."""
        for k in range(count, 3):
            delattr(self, f"layer{k + 1}")

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Tell timm's layer-wise learning rates which parameters belong together."""
        return {"stem": r"^conv1|^bn1", "blocks": r"^layer(\d+)" if coarse else r"^layer(\d+)\.(\d+)"}


def _stage(
    in_chs: int, out_chs: int, blocks: int, *, stride: int, first_dilation: int, dilation: int, **options: Any
) -> nn.Sequential:
    downsample = None
    if in_chs != out_chs:
        downsample = downsample_conv(in_chs, out_chs, 1, stride=stride, **options)
    return nn.Sequential(
        BasicBlock(in_chs, out_chs, stride, downsample, first_dilation=first_dilation, dilation=dilation, **options),
        *(BasicBlock(out_chs, out_chs, dilation=dilation, **options) for _ in range(blocks - 1)),
    )


def _connected(*, edge_weights: EdgeWeights = "learned", **kwargs: Any) -> ResNetCifar:
    model = rewire(ResNetCifar(**kwargs), edge_weights=edge_weights, inplace=True)
    return model.to(dtype=kwargs.get("dtype"))  # the edge weights too


DEPTHS = (20, 32, 44, 56, 110)

default_cfgs = generate_default_cfgs(
    {
        f"resnet{depth}_cifar{form}.untrained": {
            "url": "",
            "num_classes": 100,
            "input_size": (3, 32, 32),
            "fixed_input_size": False,
            "pool_size": (8, 8),
            "crop_pct": 1.0,
            "interpolation": "bilinear",
            "mean": (0.5071, 0.4865, 0.4409),  # of the training images of CIFAR-100
            "std": (0.2673, 0.2564, 0.2762),
            "first_conv": "conv1",
            "classifier": "head.fc",
            "license": "apache-2.0",
            "paper_ids": "arXiv:2008.08261" if form else "arXiv:1512.03385",
        }
        for depth in DEPTHS
        for form in ("", "_connected")
    }
)


def _create(variant: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    check_out_indices(kwargs, 3)
    return build_model_with_cfg(
        _connected if variant.endswith("_connected") else ResNetCifar,
        variant,
        pretrained,
        feature_cfg={"out_indices": (0, 1, 2)},
        **kwargs,
    )


@register_model
def resnet20_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Table 1, ResNet-20, original: 3 BasicBlocks per stage."""
    return _create("resnet20_cifar", pretrained, depth=20, **kwargs)


@register_model
def resnet20_cifar_connected(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Table 1, ResNet-20, optimized: complete graphs of 6 convolutions per stage, learned weights."""
    return _create("resnet20_cifar_connected", pretrained, depth=20, **kwargs)


@register_model
def resnet32_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Table 1, ResNet-32, original: 5 BasicBlocks per stage."""
    return _create("resnet32_cifar", pretrained, depth=32, **kwargs)


@register_model
def resnet32_cifar_connected(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Table 1, ResNet-32, optimized: complete graphs of 10 convolutions per stage, learned weights."""
    return _create("resnet32_cifar_connected", pretrained, depth=32, **kwargs)


@register_model
def resnet44_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Table 1, ResNet-44, original: 7 BasicBlocks per stage."""
    return _create("resnet44_cifar", pretrained, depth=44, **kwargs)


@register_model
def resnet44_cifar_connected(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Table 1, ResNet-44, optimized: complete graphs of 14 convolutions per stage, learned weights."""
    return _create("resnet44_cifar_connected", pretrained, depth=44, **kwargs)


@register_model
def resnet56_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Table 1, ResNet-56, original: 9 BasicBlocks per stage."""
    return _create("resnet56_cifar", pretrained, depth=56, **kwargs)


@register_model
def resnet56_cifar_connected(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Table 1, ResNet-56, optimized: complete graphs of 18 convolutions per stage, learned weights."""
    return _create("resnet56_cifar_connected", pretrained, depth=56, **kwargs)


@register_model
def resnet110_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Table 1, ResNet-110, original: 18 BasicBlocks per stage."""
    return _create("resnet110_cifar", pretrained, depth=110, **kwargs)


@register_model
def resnet110_cifar_connected(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Table 1, ResNet-110, optimized: complete graphs of 36 convolutions per stage, learned weights."""
    return _create("resnet110_cifar_connected", pretrained, depth=110, **kwargs)
