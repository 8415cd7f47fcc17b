"""The part of a TopoNet that classifiers and detectors share: a stem and stages, independent of any framework."""

from __future__ import annotations

import logging
import math
import operator
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
from timm.layers import get_norm_layer
from torch import Tensor, fx, nn

from ..errors import ConfigError
from ..ops.memory_format import from_fast_format, to_fast_format
from ..topology import Topology, make_topology
from .recompute import update_statistics_once
from .stage import NormLayer, TopoStage
from .wiring import EdgeWeights, check_dtypes

_logger = logging.getLogger(__name__)

TopologySpec = str | Mapping[str, Any] | Topology

# They depend on the tensor, so torch.fx must record the calls without tracing into them.
fx.wrap("to_fast_format")
fx.wrap("from_fast_format")

# Arguments that differ between the named networks or those of weights files; all others have one default.
ARCHITECTURE_ARGUMENTS = ("nodes", "width", "topology", "edge_weights", "seed", "output_stride")


class Stem(nn.Module):
    """7x7 stride-2 convolution and normalization: [B, in_chans, H, W] to [B, width, ceil(H / 2), ceil(W / 2)].

    The activation is in the first node.
    """

    def __init__(self, in_chans: int, width: int, *, norm_layer: NormLayer = nn.BatchNorm2d, **factory: Any):
        super().__init__()
        self.conv = nn.Conv2d(in_chans, width, 7, stride=2, padding=3, bias=False, **factory)
        self.norm = norm_layer(width, **factory)

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalized convolution."""
        return self.norm(self.conv(x))


class Trunk(nn.Module):
    """Stem and stages in series, with feature maps by stage at strides 4, 8, 16, 32, or up to `output_stride`.

    Subclasses add a head, or the interface of a framework; parameter names are the same in all of them, so one weights
    file fits all.

    Args:
        stem: maps the image to stride 2.
        stages: each has `stride` and `out_chs`.
    """

    network_prefix = ""  # prefix of tensor names that weights files do not have

    def __init__(self, stem: nn.Module, stages: Sequence[TopoStage]):
        super().__init__()
        self.stem = stem
        self.stages = nn.Sequential(*stages)
        init_weights(self)

    @property
    def stage_channels(self) -> tuple[int, ...]:
        """Channels of each stage's feature map."""
        return tuple(stage.out_chs for stage in self.stages)

    @property
    def stage_strides(self) -> tuple[int, ...]:
        """Stride of each stage's feature map with respect to the image."""
        return tuple(accumulate((stage.stride for stage in self.stages), operator.mul, initial=2))[1:]

    @property
    def topologies(self) -> tuple[Topology, ...]:
        """The graph of each stage."""
        return tuple(stage.topology for stage in self.stages)

    def stage_features(self, x: Tensor) -> Iterator[Tensor]:
        """Yield each stage's feature map in turn; stages after the last one requested are not computed."""
        features = self.stem(to_fast_format(x))
        for stage in self.stages:
            features = stage(features)
            yield from_fast_format(features, x)

    def frozen_modules(self, frozen_stages: int) -> list[nn.Module]:
        """Return the modules that `frozen_stages` freezes: -1 none, 0 the stem, k the stem and the first k stages.

        Raises:
            ConfigError: not in -1..number of stages.
        """
        check_frozen_stages(frozen_stages, len(self.stages))
        return [] if frozen_stages < 0 else [self.stem, *self.stages[:frozen_stages]]

    def ignores(self, name: str) -> bool:
        """Whether a tensor of a whole network is not in this part: the classifier's, or of a stage not built."""
        part, _, rest = name.partition(".")
        if part == "stages":
            return rest.partition(".")[0] not in dict(self.stages.named_children())
        return part == "head" and not hasattr(self, "head")

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        check_dtypes(self, state_dict, prefix)
        if not prefix:
            own = self.state_dict()
            _logger.info("topodet: %d/%d tensors", sum(name in state_dict for name in own), len(own))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each node in the backward pass instead of storing its activations (timm's switch)."""
        for stage in self.stages:
            stage.grad_checkpointing = enable
        if enable:
            update_statistics_once(self)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names of the parameters without weight decay in timm's optimizer factory: the edge weights."""
        return {name for name, _ in self.named_parameters() if name.endswith("wiring.alpha")}


def check_frozen_stages(frozen_stages: int, num_stages: int) -> None:
    """Raise an error for a `frozen_stages` that a network with `num_stages` stages does not have.

    Raises:
        ConfigError: not in -1..num_stages.
    """
    if not -1 <= frozen_stages <= num_stages:
        raise ConfigError(
            f"frozen_stages={frozen_stages}, but this network has {num_stages} stages: use -1 (nothing), "
            f"0 (stem) or 1..{num_stages} (stem and that many stages)"
        )


def check_out_indices(kwargs: Mapping[str, Any], total: int) -> None:
    """Refuse `out_indices` for which timm's own feature extractors use another order than `feature_info`.

    They return the maps in the order of the stages, each once.

    Args:
        kwargs: arguments of a network's entrypoint; without `out_indices` they are accepted.
        total: number of stages; a negative index counts from the last.

    Raises:
        ConfigError: not ascending.
    """
    indices = kwargs.get("out_indices")
    if not isinstance(indices, Sequence):  # None, or the number of last stages
        return
    stages = [k + total if k < 0 else k for k in indices]
    if stages != sorted(set(stages)):
        raise ConfigError(
            f"out_indices={tuple(indices)} must be ascending, each stage once: the maps come in the order of the stages"
        )


def build_blocks(
    *,
    nodes: Sequence[int] = (14, 20, 26, 14),
    width: int = 64,
    topology: TopologySpec | Sequence[TopologySpec] = "complete",
    edge_weights: EdgeWeights = "learned",
    seed: int = 0,
    in_chans: int = 3,
    norm_layer: str | NormLayer = "batchnorm2d",
    num_stages: int | None = None,
    output_stride: int | None = None,
    **factory: Any,
) -> tuple[Stem, list[TopoStage]]:
    """Build the blocks of a network from its hyper-parameters; the defaults are the paper's network.

    Args:
        nodes: nodes of each stage; stage k has `width * 2**(k + 1)` channels.
        width: channels of the stem (C in the paper).
        topology: a specification for `make_topology`, for all stages or one for each stage.
        edge_weights: "learned" or "fixed" at 1.
        seed: stage k draws a random graph with `seed + k`.
        in_chans: channels of the image.
        norm_layer: a name that timm knows, or a callable from channels to a module.
        num_stages: number of stages to build, if not all are needed.
        output_stride: 8, 16 or 32. Stages beyond it do not stride, but are dilated (see `dilated`); None for no
            dilation.
        factory: device and dtype of the parameters, if given; passed to `norm_layer` too.

    Raises:
        ConfigError: an invalid width or number of nodes, a number of topologies that differs from the number of stages,
            or an invalid `output_stride`.
        TopologyError: a topology that cannot be made.
    """
    if isinstance(nodes, int) or not nodes:
        raise ConfigError(f"nodes must list the nodes of each stage, e.g. (14, 20, 26, 14), got {nodes!r}")
    if width < 1 or in_chans < 1:
        raise ConfigError(f"width and in_chans must be positive, got width={width}, in_chans={in_chans}")
    if output_stride not in (None, 8, 16, 32):
        raise ConfigError(f"output_stride={output_stride!r}: use 8, 16 or 32 (four stages without dilation)")
    # A single spec is a name, a mapping or a Topology; anything else lists one for each stage.
    specs = [topology] * len(nodes) if isinstance(topology, str | Mapping | Topology) else list(topology)
    if len(specs) != len(nodes):
        raise ConfigError(f"{len(specs)} topologies for {len(nodes)} stages; give one for all stages or one each")
    norm = make_norm_layer(norm_layer)
    stem = Stem(in_chans, width, norm_layer=norm, **factory)
    plan = dilated([2] * len(nodes), output_stride, reached=2)
    stages = [
        TopoStage(
            width * 2**k,
            width * 2 ** (k + 1),
            make_topology(specs[k], nodes[k], seed=seed + k),
            edge_weights=edge_weights,
            norm_layer=norm,
            **plan[k],
            **factory,
        )
        for k in range(len(nodes) if num_stages is None else num_stages)
    ]
    return stem, stages


def make_norm_layer(norm_layer: str | NormLayer) -> NormLayer:
    """Return a function from channels to a normalization, from a name that timm knows or a callable.

    Raises:
        ConfigError: an unknown name.
    """
    if not isinstance(norm_layer, str):
        return norm_layer
    try:
        return get_norm_layer(norm_layer)
    except (KeyError, AssertionError) as error:
        raise ConfigError(
            f"unknown norm_layer {norm_layer[:80]!r}: give a name that timm knows, e.g. batchnorm2d, groupnorm or "
            "layernorm2d"
        ) from error


def dilated(strides: Sequence[int], output_stride: int | None, *, reached: int = 1) -> list[dict[str, int]]:
    """Return the stride and dilations of each stage for a network with at most `output_stride`.

    A stride beyond that is omitted, and the layers after its convolution are dilated by it (as in timm's ResNet): at
    the positions that the original network would keep, the values are the same.

    Args:
        strides: strides of the stages.
        output_stride: largest stride of the last stage; None for no limit.
        reached: stride of the first stage's input.
    """
    plan, dilation = [], 1
    for stride in strides:
        first = dilation
        if output_stride is not None and reached >= output_stride:
            dilation, stride = dilation * stride, 1
        reached *= stride
        plan.append({"stride": stride, "first_dilation": first, "dilation": dilation})
    return plan


def given(**factory: Any) -> dict[str, Any]:
    """Return device and dtype, as far as they are given: not every `norm_layer` accepts them."""
    return {name: value for name, value in factory.items() if value is not None}


def init_weights(module: nn.Module) -> None:
    """Initialize in place: convolutions He-normal over their outputs, linear layers N(0, 0.01), alpha 1."""
    for part in module.modules():
        if not isinstance(part, nn.Conv2d | nn.Linear):
            continue
        if part.weight.is_meta:  # it has no values, and PyTorch takes long to draw them
            continue
        if isinstance(part, nn.Conv2d):
            # In a grouped convolution, an input channel only reaches the outputs of its group.
            fan_out = math.prod(part.kernel_size) * part.out_channels // part.groups
            nn.init.normal_(part.weight, std=math.sqrt(2.0 / fan_out))
        else:
            nn.init.normal_(part.weight, std=0.01)
            nn.init.zeros_(part.bias)
