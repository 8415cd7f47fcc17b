"""What a block of an existing network adds to its stream: `x + f(x)` split, for timm's blocks.

A block is split into its own modules, so names and weights stay the same. If its class can skip the addition
(`has_skip=False`), the block itself is run without it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

Branch = Callable[..., Tensor]


@dataclass(frozen=True)
class Residual:
    """How one class of blocks adds to its stream.

    Args:
        branches: functions of (block, x, ...) that return what is added to x, of the shape of x, in the order in which
            the block adds them: a transformer block has two. Further arguments are those of the block's call. They must
            be module-level functions, not lambdas, so that a connected network can be pickled.
        obstacle: takes a block and returns why it cannot be split, or None if it can.
        switch: (attribute, value) that makes the block skip its addition, for branches that call the block.
        activation: attribute of the activation after the addition; it is applied to the sum that the block returns.
        shortcut: attribute of the module on the shortcut. If that is not the identity, a new run starts, which reads
            the stream through it; only the first branch reads the stream itself. None for blocks with identity
            shortcuts only.
        parts: for several branches, the attributes that each of them uses, separated by spaces; pruning removes them
            with the branch. A single branch is the whole block.
    """

    branches: tuple[Branch, ...]
    obstacle: Callable[[nn.Module], str | None] = lambda block: None
    switch: tuple[str, object] | None = None
    activation: str | None = None
    shortcut: str | None = None
    parts: tuple[str, ...] = ()

    def begins_run(self, block: nn.Module) -> bool:
        """Whether the stream changes on the block's shortcut."""
        return self.shortcut is not None and not _is_identity(getattr(block, self.shortcut))

    def stream_width(self, block: nn.Module) -> int | None:
        """Return the channels of the stream that a block reads or starts; None if unknown."""
        layers = [*block.children(), *block.modules()]  # direct children first: deeper modules may have position tables
        widths = [_channels(layer, "in") for layer in layers]
        if self.begins_run(block):
            on_shortcut = reversed(list(getattr(block, self.shortcut).modules()))
            widths = [*(_channels(layer, "out") for layer in on_shortcut), *widths]
        return next(filter(None, widths), None)


class Table:
    """How classes of blocks add to their streams.

    Args:
        families: module -> class -> how it adds. Imported on first use; classes that an installed version lacks are
            skipped.
    """

    def __init__(self, families: Mapping[str, Mapping[str, Residual]]):
        self.families = families
        self.by_forward: dict[Callable, Residual] = {}

    def find(self, block: nn.Module, own: Mapping[type[nn.Module], Residual] | None = None) -> Residual | None:
        """Return how a block adds to its stream; None for an unknown class.

        Args:
            block: any module.
            own: additional classes, which take precedence.
        """
        if own and type(block) in own:
            return own[type(block)]
        if not self.by_forward:
            for name, entries in self.families.items():
                module = importlib.import_module(name)
                for kind, residual in entries.items():
                    if hasattr(module, kind):
                        self.by_forward[getattr(module, kind).forward] = residual
        # By the forward and not by the class: a subclass with its own forward may add in another way.
        return self.by_forward.get(getattr(type(block), "forward", None))  # classes of torch.jit have none

    def classes(self) -> Iterator[str]:
        """Yield the classes of the table as "module.Class", modules of timm.models without their package."""
        for module, entries in self.families.items():
            yield from (f"{module.removeprefix('timm.models.')}.{kind}" for kind in entries)


def _channels(layer: nn.Module, side: str) -> int | None:
    """Return the channels that a layer reads ("in") or returns ("out"); None for other modules."""
    for kind in ("channels", "features"):
        count = getattr(layer, f"{side}_{kind}", None)
        if isinstance(count, int):
            return count
    weight = getattr(layer, "weight", None)
    return weight.numel() if isinstance(weight, Tensor) else None  # of a normalization


def _is_identity(module: nn.Module | None) -> bool:
    return module is None or isinstance(module, nn.Identity)


NO_SHORTCUT = "it has no identity shortcut (its stride or width changes, or it was built without one)"
# Why the blocks of ResNets are no such nodes; the activation comes first.
FOLLOWS = "follows the addition, so its output is not a sum of residuals"


def _needs_skip(block: nn.Module) -> str | None:
    return None if block.has_skip else NO_SHORTCUT


def _needs_identity(name: str) -> Callable[[nn.Module], str | None]:
    return lambda block: None if isinstance(getattr(block, name), nn.Identity) else NO_SHORTCUT


def _needs_no_downsample(block: nn.Module) -> str | None:
    return None if block.downsample is None else NO_SHORTCUT


def _needs_linear(*, shortcut: str, activation: str) -> Callable[[nn.Module], str | None]:
    def obstacle(block: nn.Module) -> str | None:
        after = getattr(block, activation)
        if not isinstance(after, nn.Identity):
            return f"{type(after).__name__} {FOLLOWS}"
        return _needs_identity(shortcut)(block)

    return obstacle


def _activation_always(block: nn.Module) -> str:
    return f"an activation {FOLLOWS}"


def _refused(reason: Callable[[nn.Module], str]) -> Residual:
    return Residual(branches=(), obstacle=reason)


# The blocks of MobileNets and EfficientNets: their classes can skip the addition, but then also skip drop path.


def _itself_dropped(block: nn.Module, x: Tensor) -> Tensor:
    return block.drop_path(block(x))


def _itself(block: nn.Module, x: Tensor) -> Tensor:
    return block(x)


def _mobile_attention_obstacle(block: nn.Module) -> str | None:
    if block.conv_cpe_dw is not None:
        return "its position encoding is added to the shortcut as well"
    return _needs_skip(block)


_EFFICIENTNET = Residual((_itself_dropped,), _needs_skip, switch=("has_skip", False))
_MOBILE_ATTENTION = Residual((_itself_dropped,), _mobile_attention_obstacle, switch=("has_skip", False))
_BYOB = Residual((_itself,), _needs_linear(shortcut="shortcut", activation="act"), switch=("shortcut", None))
_REGNET = Residual(
    (_itself_dropped,), _needs_linear(shortcut="downsample", activation="act3"), switch=("downsample", None)
)


def _regnet_preact_obstacle(block: nn.Module) -> str:
    return "its shortcut carries the normalized and activated input, not the input"


# ConvNets, whose `forward` is repeated here without the addition.


def _convnext(block: nn.Module, x: Tensor) -> Tensor:
    x = block.conv_dw(x)
    if block.use_conv_mlp:
        x = block.mlp(block.norm(x))
    else:
        x = block.mlp(block.norm(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
    if block.gamma is not None:
        x = x * block.gamma.reshape(1, -1, 1, 1)
    return block.drop_path(x)


def _inception_next(block: nn.Module, x: Tensor) -> Tensor:
    x = block.mlp(block.norm(block.token_mixer(x)))
    if block.gamma is not None:
        x = x * block.gamma.reshape(1, -1, 1, 1)
    return block.drop_path(x)


def _preact_basic(block: nn.Module, x: Tensor) -> Tensor:
    x = block.conv1(block.norm1(x))
    return block.drop_path(block.conv2(block.norm2(x)))


def _preact_bottleneck(block: nn.Module, x: Tensor) -> Tensor:
    x = block.conv1(block.norm1(x))
    x = block.conv2(block.norm2(x))
    return block.drop_path(block.conv3(block.norm3(x)))


def _norm_free(block: nn.Module, x: Tensor) -> Tensor:
    x = block.conv1(block.act1(x) * block.beta)
    x = block.conv2(block.act2(x))
    if block.conv2b is not None:
        x = block.conv2b(block.act2b(x))
    if block.attn is not None:
        x = block.attn_gain * block.attn(x)
    x = block.conv3(block.act3(x))
    if block.attn_last is not None:
        x = block.attn_gain * block.attn_last(x)
    x = block.drop_path(x)
    if block.skipinit_gain is not None:
        x = x * block.skipinit_gain
    return x * block.alpha


def _dark(block: nn.Module, x: Tensor) -> Tensor:
    return block.drop_path(block.conv2(block.attn(block.conv1(x))))


# Blocks that add twice: token mixing, then an MLP.


def _attention(block: nn.Module, x: Tensor, **kwargs: object) -> Tensor:
    return block.drop_path1(block.ls1(block.attn(block.norm1(x), **kwargs)))


def _mlp(block: nn.Module, x: Tensor, **_: object) -> Tensor:
    return block.drop_path2(block.ls2(block.mlp(block.norm2(x))))


def _post_norm_attention(block: nn.Module, x: Tensor, **kwargs: object) -> Tensor:
    return block.drop_path1(block.norm1(block.attn(x, **kwargs)))


def _post_norm_mlp(block: nn.Module, x: Tensor, **_: object) -> Tensor:
    return block.drop_path2(block.norm2(block.mlp(x)))


def _eva_attention(block: nn.Module, x: Tensor, **kwargs: object) -> Tensor:
    x = block.attn(block.norm1(x), **kwargs)
    return block.drop_path1(x if block.gamma_1 is None else block.gamma_1 * x)


def _eva_mlp(block: nn.Module, x: Tensor, **_: object) -> Tensor:
    x = block.mlp(block.norm2(x))
    return block.drop_path2(x if block.gamma_2 is None else block.gamma_2 * x)


def _swin_attention(block: nn.Module, x: Tensor) -> Tensor:
    return block.drop_path1(block._attn(block.norm1(x)))


def _swin_mlp(block: nn.Module, x: Tensor) -> Tensor:
    return block.drop_path2(block.mlp(block.norm2(x)))


def _swin_v2_attention(block: nn.Module, x: Tensor) -> Tensor:
    return block.drop_path1(block.norm1(block._attn(x)))


def _metaformer_mixer(block: nn.Module, x: Tensor) -> Tensor:
    return block.layer_scale1(block.drop_path1(block.token_mixer(block.norm1(x))))


def _metaformer_mlp(block: nn.Module, x: Tensor) -> Tensor:
    return block.layer_scale2(block.drop_path2(block.mlp(block.norm2(x))))


def _metaformer_obstacle(block: nn.Module) -> str | None:
    if isinstance(block.res_scale1, nn.Identity) and isinstance(block.res_scale2, nn.Identity):
        return None
    return "it scales its shortcuts by channel"


def _mixer_tokens(block: nn.Module, x: Tensor) -> Tensor:
    return block.drop_path(block.mlp_tokens(block.norm1(x).transpose(1, 2)).transpose(1, 2))


def _mixer_channels(block: nn.Module, x: Tensor) -> Tensor:
    return block.drop_path(block.mlp_channels(block.norm2(x)))


_ATTENTION_AND_MLP = ("norm1 attn ls1 gamma_1 drop_path1", "norm2 mlp ls2 gamma_2 drop_path2")
_EVA = Residual((_eva_attention, _eva_mlp), parts=_ATTENTION_AND_MLP)
_RES_POST = Residual((_post_norm_attention, _post_norm_mlp), parts=_ATTENTION_AND_MLP)

# Module of timm.models -> class -> how it adds.
_FAMILIES: dict[str, dict[str, Residual]] = {
    "_efficientnet_blocks": {
        "ConvBnAct": _EFFICIENTNET,
        "DepthwiseSeparableConv": _EFFICIENTNET,
        "InvertedResidual": _EFFICIENTNET,
        "UniversalInvertedResidual": _EFFICIENTNET,
        "CondConvResidual": _EFFICIENTNET,
        "EdgeResidual": _EFFICIENTNET,
        "MobileAttention": _MOBILE_ATTENTION,
    },
    "byobnet": {
        "BasicBlock": _BYOB,
        "BottleneckBlock": _BYOB,
        "DarkBlock": _BYOB,
        "EdgeBlock": _BYOB,
        "SelfAttnBlock": _BYOB,
    },
    "regnet": {"Bottleneck": _REGNET, "PreBottleneck": _refused(_regnet_preact_obstacle)},
    "convnext": {"ConvNeXtBlock": Residual((_convnext,), _needs_identity("shortcut"))},
    "inception_next": {"MetaNeXtBlock": Residual((_inception_next,))},
    "resnetv2": {
        "PreActBasic": Residual((_preact_basic,), _needs_no_downsample),
        "PreActBottleneck": Residual((_preact_bottleneck,), _needs_no_downsample),
        "Bottleneck": _refused(_activation_always),
    },
    "nfnet": {"NormFreeBlock": Residual((_norm_free,), _needs_no_downsample)},
    "cspnet": {
        "DarkBlock": Residual((_dark,)),
        "EdgeBlock": Residual((_dark,)),
        "BottleneckBlock": _refused(_activation_always),
    },
    "vision_transformer": {
        "Block": Residual((_attention, _mlp), parts=_ATTENTION_AND_MLP),
        "ResPostBlock": _RES_POST,
    },
    "eva": {"EvaBlock": _EVA, "EvaBlockPostNorm": _RES_POST},
    "beit": {"Block": _EVA},
    "swin_transformer": {"SwinTransformerBlock": Residual((_swin_attention, _swin_mlp), parts=_ATTENTION_AND_MLP)},
    "swin_transformer_v2": {
        "SwinTransformerV2Block": Residual((_swin_v2_attention, _post_norm_mlp), parts=_ATTENTION_AND_MLP)
    },
    "metaformer": {
        "MetaFormerBlock": Residual(
            (_metaformer_mixer, _metaformer_mlp),
            _metaformer_obstacle,
            parts=("norm1 token_mixer drop_path1 layer_scale1", "norm2 mlp drop_path2 layer_scale2"),
        )
    },
    "mlp_mixer": {
        "MixerBlock": Residual(
            (_mixer_tokens, _mixer_channels), parts=("norm1 mlp_tokens drop_path", "norm2 mlp_channels drop_path")
        )
    },
    # An activation always follows the addition.
    **{
        module: dict.fromkeys(names, _refused(_activation_always))
        for module, names in {
            "resnet": ("BasicBlock", "Bottleneck"),
            "res2net": ("Bottle2neck",),
            "resnest": ("ResNestBottleneck",),
            "senet": ("SEBottleneck", "SEResNetBottleneck", "SEResNeXtBottleneck", "SEResNetBlock"),
            "sknet": ("SelectiveKernelBasic", "SelectiveKernelBottleneck"),
            "tresnet": ("BasicBlock", "Bottleneck"),
        }.items()
    },
}

# Blocks whose stream is a sum of residuals, or the reason why it is not.
ADDITIVE = Table({f"timm.models.{module}": entries for module, entries in _FAMILIES.items()})
