"""MobileNetV2 in multiples of its depth, plain and with learned connectivity, after the paper's Table 2.

    >>> import timm
    >>> import topodet
    >>> from topodet.complexity import parameters
    >>> [parameters(timm.create_model(name)) for name in ("mobilenetv2_x2", "mobilenetv2_x2_connected")]
    [(6353848, 0), (6353848, 115)]

The table multiplies the depth of stages without saying which: no uniform rule gives its sizes. Here every stage is
multiplied, and `depths` accepts any other choice. The networks may differ from those of the table.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._builder import pretrained_cfg_for_features
from timm.models._efficientnet_builder import decode_arch_def
from timm.models.efficientnet import EfficientNet, EfficientNetFeatures
from torch import nn

from ..errors import ConfigError
from .connected.connect import connect
from .trunk import check_out_indices
from .wiring import EdgeWeights

# The stages of MobileNetV2 (arXiv 1801.04381, Table 2) in timm's terms, without their depths: kind, kernel, stride,
# expansion, channels.
_STAGES = (
    "ds_r{}_k3_s1_c16",
    "ir_r{}_k3_s2_e6_c24",
    "ir_r{}_k3_s2_e6_c32",
    "ir_r{}_k3_s2_e6_c64",
    "ir_r{}_k3_s1_e6_c96",
    "ir_r{}_k3_s2_e6_c160",
    "ir_r{}_k3_s1_e6_c320",
)
DEPTHS = (1, 2, 3, 4, 3, 3, 1)


def _build(
    kind: type[nn.Module],
    *,
    connected: bool,
    depths: Sequence[int] = DEPTHS,
    edge_weights: EdgeWeights = "learned",
    **kwargs: Any,
) -> nn.Module:
    if len(depths) != len(_STAGES) or min(depths) < 1:
        raise ConfigError(f"depths must give the blocks of MobileNetV2's {len(_STAGES)} stages, got {tuple(depths)}")
    blocks = decode_arch_def([[stage.format(depth)] for stage, depth in zip(_STAGES, depths)])
    model = kind(blocks, act_layer=nn.ReLU6, **kwargs)
    if not connected:
        return model
    return connect(model, edge_weights=edge_weights, inplace=True).to(dtype=kwargs.get("dtype"))  # the edge weights too


def _create(variant: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    check_out_indices(kwargs, 5)
    # As for timm's EfficientNets: the feature extractor is a separate class with the same names, unless `feature_cls`
    # selects one that wraps the classifier.
    features = kwargs.get("features_only", False) and not {"feature_cls", "feature_cfg"} & set(kwargs)
    if features:
        del kwargs["features_only"]
    elif "feature_cls" in kwargs:  # needed for timm's "list" and "dict" to find the stages
        kwargs["feature_cfg"] = {"flatten_sequential": True, **kwargs.get("feature_cfg", {})}
    model = build_model_with_cfg(
        partial(_build, EfficientNetFeatures if features else EfficientNet, connected=variant.endswith("_connected")),
        variant,
        pretrained,
        kwargs_filter=("num_classes", "num_features", "global_pool") if features else None,
        **kwargs,
    )
    if features:
        model.pretrained_cfg = model.default_cfg = pretrained_cfg_for_features(model.pretrained_cfg)
    return model


def _times(multiple: int) -> tuple[int, ...]:
    return tuple(multiple * depth for depth in DEPTHS)


default_cfgs = generate_default_cfgs(
    {
        f"{name}.untrained": {
            "url": "",
            "num_classes": 1000,
            "input_size": (3, 224, 224),
            "pool_size": (7, 7),
            "crop_pct": 0.875,
            "interpolation": "bicubic",
            "mean": IMAGENET_DEFAULT_MEAN,
            "std": IMAGENET_DEFAULT_STD,
            "first_conv": "conv_stem",
            "classifier": "classifier",
            "license": "apache-2.0",
            "paper_ids": ("arXiv:1801.04381", "arXiv:2008.08261"),
        }
        for name in (
            "mobilenetv2_x1_connected",
            *(f"mobilenetv2_x{multiple}{form}" for multiple in (2, 4, 6) for form in ("", "_connected")),
        )
    }
)


@register_model
def mobilenetv2_x1_connected(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """timm's mobilenetv2_100 with learned edge weights."""
    return _create("mobilenetv2_x1_connected", pretrained, **kwargs)


@register_model
def mobilenetv2_x2(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """MobileNetV2 with 2 times the blocks in every stage."""
    return _create("mobilenetv2_x2", pretrained, **{"depths": _times(2), **kwargs})


@register_model
def mobilenetv2_x2_connected(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """mobilenetv2_x2 with learned edge weights; with all of them 1 it computes the same."""
    return _create("mobilenetv2_x2_connected", pretrained, **{"depths": _times(2), **kwargs})


@register_model
def mobilenetv2_x4(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """MobileNetV2 with 4 times the blocks in every stage."""
    return _create("mobilenetv2_x4", pretrained, **{"depths": _times(4), **kwargs})


@register_model
def mobilenetv2_x4_connected(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """mobilenetv2_x4 with learned edge weights; with all of them 1 it computes the same."""
    return _create("mobilenetv2_x4_connected", pretrained, **{"depths": _times(4), **kwargs})


@register_model
def mobilenetv2_x6(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """MobileNetV2 with 6 times the blocks in every stage."""
    return _create("mobilenetv2_x6", pretrained, **{"depths": _times(6), **kwargs})


@register_model
def mobilenetv2_x6_connected(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """mobilenetv2_x6 with learned edge weights; with all of them 1 it computes the same."""
    return _create("mobilenetv2_x6_connected", pretrained, **{"depths": _times(6), **kwargs})
