"""TopoNet as a timm model (ECCV 2020, arXiv 2008.08261), and the networks of the paper by name."""

# No `annotations` from __future__: torch.fx copies those of `forward` into its graphs, and pickles only types.
from collections.abc import Sequence
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import FeatureInfo, build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from ..errors import ConfigError, unknown_name
from .classifier import StagedClassifier, make_head
from .packaged import PACKAGED, packaged_weights
from .stage import NormLayer
from .trunk import EdgeWeights, TopologySpec, Trunk, build_blocks, given, init_weights


class TopoNet(Trunk, StagedClassifier):
    """Stem, stages, global average pooling and a linear classifier: [B, in_chans, H, W] to [B, num_classes].

    The defaults are the paper's network: {14, 20, 26, 14} nodes, C = 64, complete graphs, learned weights: 23,745,640
    parameters and 697 edge weights, 3,931,535,872 multiply-adds at 224 (the paper prints 23.23M, 3.95G). As in Eq. 1, a
    stage ends with its last node's normalization, whose output the next node's ReLU, or the pooling, reads.

    Args:
        nodes, width, topology, edge_weights, seed, in_chans, norm_layer, output_stride: see `build_blocks`.
        num_classes: outputs of the classifier; 0 leaves it out and returns pooled features.
        global_pool: timm's pooling type.
        drop_rate: dropout before the classifier.
        device, dtype: device and dtype of the parameters.
    """

    def __init__(
        self,
        *,
        nodes: Sequence[int] = (14, 20, 26, 14),
        width: int = 64,
        topology: TopologySpec | Sequence[TopologySpec] = "complete",
        edge_weights: EdgeWeights = "learned",
        seed: int = 0,
        in_chans: int = 3,
        norm_layer: str | NormLayer = "batchnorm2d",
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        output_stride: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        factory = given(device=device, dtype=dtype)
        blocks = build_blocks(
            nodes=nodes,
            width=width,
            topology=topology,
            edge_weights=edge_weights,
            seed=seed,
            in_chans=in_chans,
            norm_layer=norm_layer,
            output_stride=output_stride,
            **factory,
        )
        super().__init__(*blocks)
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = self.stage_channels[-1]
        self.head = make_head(self.num_features, num_classes, pool_type=global_pool, drop_rate=drop_rate, **factory)
        init_weights(self.head)
        self.feature_info = [
            {"num_chs": channels, "reduction": stride, "module": f"stages.{k}"}
            for k, (channels, stride) in enumerate(zip(self.stage_channels, self.stage_strides))
        ]

    def keep_stages(self, count: int) -> None:
        """Drop the stages after the first `count`."""
        self.stages = self.stages[:count]

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Tell timm's layer-wise learning rates which parameters belong together."""
        blocks = r"^stages\.(\d+)" if coarse else [(r"^stages\.(\d+)\.nodes\.(\d+)", None), (r"^stages\.(\d+)", None)]
        return {"stem": r"^stem", "blocks": blocks}


class TopoNetFeatures(Trunk):
    """What `timm.create_model(..., features_only=True)` returns: [B, in_chans, H, W] to a list of feature maps.

    Parameters are named as in `TopoNet`; a checkpoint of the classifier or a published backbone loads directly, and the
    classifier and unused stages are skipped.

    Args:
        model: the network whose blocks are used.
        out_indices: stages to return, in this order, 0 at stride 4.
    """

    def __init__(self, model: TopoNet, out_indices: Sequence[int] = (0, 1, 2, 3)):
        # `Trunk.__init__` would initialize weights that may have been loaded.
        nn.Module.__init__(self)
        indices, last = feature_take_indices(len(model.stages), list(out_indices))
        self.stem = model.stem
        self.stages = model.stages[: last + 1]
        self.in_chans = model.in_chans
        self.out_indices = tuple(indices)
        self.feature_info = FeatureInfo(model.feature_info, self.out_indices)
        self.register_load_state_dict_pre_hook(_drop_unread)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the feature maps of `out_indices`, [B, channels, H / stride, W / stride] each."""
        maps = {k: x for k, x in enumerate(self.stage_features(x)) if k in self.out_indices}
        return [maps[k] for k in self.out_indices]


def _drop_unread(module: Trunk, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
    for key in [key for key in state_dict if key.startswith(prefix) and module.ignores(key[len(prefix) :])]:
        del state_dict[key]


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "stem.conv",
        "classifier": "head.fc",
        "license": "apache-2.0",
        "paper_ids": "arXiv:2008.08261",
        **kwargs,
    }


_SMALL = {"input_size": (3, 64, 64), "pool_size": (2, 2), "crop_pct": 1.0}

# Hyper-parameters of the named networks: the rows of the paper's Table 4 over the same nodes, where only the complete
# graph has learned weights, a small world over them, and two sizes for small machines.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "toponet_nano": {"nodes": (4, 5, 6, 4), "width": 16},
    "toponet_small": {"nodes": (6, 8, 10, 6), "width": 32},
    "toponet50": {},
    "toponet50_complete": {"edge_weights": "fixed"},
    **{
        f"toponet50_residual{interval}": {
            "topology": {"name": "residual", "interval": interval},
            "edge_weights": "fixed",
        }
        for interval in (2, 3, 4)
    },
    **{
        f"toponet50_random{percent}": {
            "topology": {"name": "random", "p": percent / 100},
            "edge_weights": "fixed",
        }
        for percent in (40, 60, 80)
    },
    "toponet50_er": {"topology": {"name": "erdos_renyi", "p": 0.2}, "edge_weights": "fixed"},
    "toponet50_ba": {"topology": {"name": "barabasi_albert", "m": 5}, "edge_weights": "fixed"},
    "toponet50_ws": {"topology": {"name": "watts_strogatz", "k": 4, "p": 0.75}, "edge_weights": "fixed"},
    "toponet50_smallworld": {"topology": {"name": "small_world_chain", "p": 0.25}, "edge_weights": "fixed"},
}


def architecture_arguments(arch: str, **overrides: Any) -> dict[str, Any]:
    """Return the arguments of `build_blocks` for a named network, replaced by the `overrides` that are not None.

    Raises:
        ConfigError: unknown network.
    """
    if arch not in ARCHITECTURES:
        raise ConfigError(unknown_name("arch", arch, ARCHITECTURES))
    return {**ARCHITECTURES[arch], **{name: value for name, value in overrides.items() if value is not None}}


def _default_cfg(name: str) -> tuple[str, dict[str, Any]]:
    """Return a network's tag and timm's description of its weights."""
    small = _SMALL if name in ("toponet_nano", "toponet_small") else {}
    if name not in PACKAGED:
        return f"{name}.untrained", _cfg(**small)
    weights = PACKAGED[name]
    return f"{name}.{weights.tag}", _cfg(**small, file=str(weights.path), num_classes=weights.num_classes)


default_cfgs = generate_default_cfgs(dict(map(_default_cfg, ARCHITECTURES)))


def _create(variant: str, pretrained: bool = False, **kwargs: Any) -> TopoNet | TopoNetFeatures:
    feature_cfg: dict[str, Any] = {"out_indices": (0, 1, 2, 3), "feature_cls": TopoNetFeatures}
    if pretrained and variant in PACKAGED:
        packaged_weights(variant)  # timm does not check the file
    if "feature_cls" in kwargs:  # needed for timm's "list" and "dict" to find the stages
        feature_cfg["flatten_sequential"] = True
    return build_model_with_cfg(
        TopoNet,
        variant,
        pretrained,
        feature_cfg=feature_cfg,
        **{**ARCHITECTURES[variant], **kwargs},
    )


@register_model
def toponet_nano(pretrained: bool = False, **kwargs: Any) -> TopoNet:
    """{4, 5, 6, 4} nodes, C = 16, complete graphs, learned weights: trains on a laptop in minutes."""
    return _create("toponet_nano", pretrained, **kwargs)


@register_model
def toponet_small(pretrained: bool = False, **kwargs: Any) -> TopoNet:
    """{6, 8, 10, 6} nodes, C = 32, complete graphs, learned weights."""
    return _create("toponet_small", pretrained, **kwargs)


@register_model
def toponet50(pretrained: bool = False, **kwargs: Any) -> TopoNet:
    """The paper's network: {14, 20, 26, 14} nodes, C = 64, complete graphs, learned weights."""
    return _create("toponet50", pretrained, **kwargs)


@register_model
def toponet50_complete(pretrained: bool = False, **kwargs: Any) -> TopoNet:
    """Table 4, `complete`: every edge, all weights fixed at 1."""
    return _create("toponet50_complete", pretrained, **kwargs)


@register_model
def toponet50_residual2(pretrained: bool = False, **kwargs: Any) -> TopoNet:
    """Table 4, `residual, l=2`: a shortcut over every 2 nodes."""
    return _create("toponet50_residual2", pretrained, **kwargs)


@register_model
def toponet50_residual3(pretrained: bool = False, **kwargs: Any) -> TopoNet:
    """Table 4, `residual, l=3`: a shortcut over every 3 nodes."""
    return _create("toponet50_residual3", pretrained, **kwargs)


@register_model
def toponet50_residual4(pretrained: bool = False, **kwargs: Any) -> TopoNet:
    """Table 4, `residual, l=4`: a shortcut over every 4 nodes."""
    return _create("toponet50_residual4", pretrained, **kwargs)


@register_model
def toponet50_random40(pretrained: bool = False, **kwargs: Any) -> TopoNet:
    """Table 4, `random, p=0.4`."""
    return _create("toponet50_random40", pretrained, **kwargs)


@register_model
def toponet50_random60(pretrained: bool = False, **kwargs: Any) -> TopoNet:
    """Table 4, `random, p=0.6`."""
    return _create("toponet50_random60", pretrained, **kwargs)


@register_model
def toponet50_random80(pretrained: bool = False, **kwargs: Any) -> TopoNet:
    """Table 4, `random, p=0.8`."""
    return _create("toponet50_random80", pretrained, **kwargs)


@register_model
def toponet50_er(pretrained: bool = False, **kwargs: Any) -> TopoNet:
    """Table 4, Erdos-Renyi with p=0.2."""
    return _create("toponet50_er", pretrained, **kwargs)


@register_model
def toponet50_ba(pretrained: bool = False, **kwargs: Any) -> TopoNet:
    """Table 4, Barabasi-Albert with m=5."""
    return _create("toponet50_ba", pretrained, **kwargs)


@register_model
def toponet50_ws(pretrained: bool = False, **kwargs: Any) -> TopoNet:
    """Table 4, Watts-Strogatz with k=4, p=0.75."""
    return _create("toponet50_ws", pretrained, **kwargs)


@register_model
def toponet50_smallworld(pretrained: bool = False, **kwargs: Any) -> TopoNet:
    """Not in the paper: a chain with shortcuts rewired at p = 0.25, where small-world-ness is largest; weights 1."""
    return _create("toponet50_smallworld", pretrained, **kwargs)
