"""`TimmTrunk`: a timm network, connected or unchanged, as a backbone for a detector's neck."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Literal, get_args

import timm
from torch import Tensor, nn

from ..errors import ConfigError, did_you_mean, unknown_name
from .connected import Nodes, RunEdges, RunWiring, connect, keep_edges_
from .connected import rewire as rewired
from .recompute import update_statistics_once
from .trunk import check_frozen_stages

TimmWiring = Literal["learned", "fixed", "none"]
STRIDES = (4, 8, 16, 32)


class TimmTrunk(nn.Module):
    """A timm network without its classifier, with feature maps at strides 4, 8, 16, 32, one stage for each.

    The network itself is the child `network`; its tensors have the names they have in timm, so files of the classifier,
    of `topodet.pretrain` and of timm's hub fit. Layers that no stage uses (the classifier, layers after the last stage)
    are removed, so that every parameter has a gradient. Image sizes may vary between calls.

    A network must have maps at all of these strides: ViTs and mixers, which have only one, cannot be used. Swin is
    built for images of any size whose sides are multiples of its patch, which detectors pad to; its maps are NCHW.

    Args:
        name: name of the network in timm, with or without the tag of its weights, e.g. "mobilenetv2_100".
        wiring: "learned" connects its runs of residual blocks (see `connect`), "fixed" does so with fixed weights,
            "none" uses timm's network unchanged. A network that is already connected ("mobilenetv2_x2_connected") keeps
            its edges; "fixed" fixes all of their weights.
        connect_nodes: kind of nodes, "residuals", "blocks" or "auto", see `connect`.
        rewire: apply `rewire` to a ResNet.
        in_chans: channels of the image.
        num_stages: number of stages to build, if not all are needed.
        edges: remaining edges of pruned runs, e.g. {"blocks.1.1.wiring": [(0, 1), (1, 3)]}; other runs are whole.
        options: further arguments of `timm.create_model`, e.g. {"drop_path_rate": 0.1}.

    Attributes:
        arch, wiring, connect_nodes, rewire: as given.
        options: arguments of `timm.create_model` that the network was created with.
        stage_channels: channels of each stage's feature map.
        stage_strides: stride of each stage's feature map with respect to the image.

    Raises:
        ConfigError: unknown name, wiring or option; a network without these strides, or with nothing to connect.
    """

    network_prefix = "network."  # prefix of tensor names that weights files do not have

    def __init__(
        self,
        name: str,
        *,
        wiring: TimmWiring = "learned",
        connect_nodes: Nodes = "residuals",
        rewire: bool = False,
        in_chans: int = 3,
        num_stages: int = len(STRIDES),
        edges: RunEdges | None = None,
        options: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        options = {"in_chans": in_chans, **_any_size(name), **(options or {})}
        network = create_timm_network(
            name, wiring=wiring, connect_nodes=connect_nodes, rewire=rewire, edges=edges, **options
        )
        taps = _taps(name, network)[:num_stages]
        self.arch, self.wiring, self.connect_nodes, self.rewire = name, wiring, connect_nodes, rewire
        self.options = options
        self.stage_channels = tuple(network.feature_info[tap]["num_chs"] for tap in taps)
        self.stage_strides = STRIDES[:num_stages]
        whole = set(network.state_dict())
        _prune(network, taps[-1])
        self._unread = frozenset(whole - set(network.state_dict()))
        self._taps = taps
        self._parts = _parts(network, taps)
        self.network = network

    def stage_features(self, x: Tensor) -> Iterator[Tensor]:
        """Yield each stage's feature map, [B, channels, ceil(H / stride), ceil(W / stride)]."""
        yield from self.network.forward_intermediates(x, indices=self._taps, intermediates_only=True)

    def ignores(self, name: str) -> bool:
        """Whether a tensor of the whole network is not in this part."""
        return name in self._unread

    def frozen_names(self, frozen_stages: int) -> list[str]:
        """Return the names within `network` of the modules that `frozen_modules` returns."""
        check_frozen_stages(frozen_stages, len(self.stage_channels))
        if frozen_stages < 0:
            return []
        names, loose = self._parts[frozen_stages]
        if loose:
            raise ConfigError(
                f"frozen_stages={frozen_stages}, but {self.arch} has tensors outside its modules ({', '.join(loose)}): "
                "it cannot be partly frozen, use -1"
            )
        return names

    def frozen_modules(self, frozen_stages: int) -> list[nn.Module]:
        """Return the modules that `frozen_stages` freezes: -1 none, 0 all before stride 4, k also the first k stages.

        Raises:
            ConfigError: not in -1..number of stages, or the network has tensors outside its modules.
        """
        return [self.network.get_submodule(name) for name in self.frozen_names(frozen_stages)]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute blocks in the backward pass instead of storing their activations (timm's switch)."""
        self.network.set_grad_checkpointing(enable)
        if enable:
            update_statistics_once(self.network)


def create_timm_network(
    name: str,
    *,
    wiring: TimmWiring = "learned",
    connect_nodes: Nodes = "residuals",
    rewire: bool = False,
    edges: RunEdges | None = None,
    **options: Any,
) -> nn.Module:
    """Return a timm network, connected or rewired unless `wiring` is "none".

    Args:
        name, wiring, connect_nodes, rewire, edges: see `TimmTrunk`.
        options: arguments of `timm.create_model`.

    Raises:
        ConfigError: unknown name or wiring, options that the network does not accept, nothing to connect, or edges of
            runs that it does not have, or edges without a path from input to output.
    """
    check_timm_name(name)
    if wiring not in ("learned", "fixed", "none"):
        raise ConfigError(unknown_name("wiring", wiring, ("learned", "fixed", "none")))
    if connect_nodes not in get_args(Nodes):
        raise ConfigError(unknown_name("connect_nodes", connect_nodes, get_args(Nodes)))
    if rewire and connect_nodes != "residuals":
        raise ConfigError(f"rewire=True defines the nodes, and so does connect_nodes={connect_nodes!r}: leave one out")
    if rewire and wiring == "none":
        raise ConfigError("rewire=True adds edges, but wiring='none' allows none: give one of them")
    try:
        network = timm.create_model(name, **options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{name} cannot be created with the given arguments: {error}") from error
    own = [module for module in network.modules() if isinstance(module, RunWiring)]
    if wiring == "none" or (own and not rewire):
        if wiring == "fixed":
            for module in own:
                module.alpha.requires_grad_(False)
    elif rewire:
        network = rewired(network, edge_weights=wiring, inplace=True)
    else:
        network = connect(network, nodes=connect_nodes, edge_weights=wiring, inplace=True)
    keep_edges_(network, edges or {})
    return network


def check_timm_name(name: str) -> None:
    """Raise an error for an architecture name that timm does not know.

    Raises:
        ConfigError: lists the closest names.
    """
    if ":" in name or timm.is_model(name.split(".")[0]):
        return
    known = timm.list_models()
    hint = did_you_mean(name, known)
    ours = ", ".join(timm.list_models("toponet*"))
    raise ConfigError(f"unknown model {name!r}.{hint} topodet has {ours}; timm.list_models() lists all {len(known)}")


def _any_size(name: str) -> dict[str, Any]:
    """Return the option that lets timm's Swin accept images of any size."""
    return {"strict_img_size": False} if name.startswith("swin") else {}


def _taps(name: str, network: nn.Module) -> list[int]:
    """Return the index of timm's feature map at each of the strides, the last one if there are several."""
    found = {info["reduction"]: k for k, info in enumerate(getattr(network, "feature_info", ()))}
    if not set(STRIDES) <= set(found) or not hasattr(network, "prune_intermediate_layers"):
        have = ", ".join(map(str, found)) or "no stride that timm knows"
        raise ConfigError(
            f"{name} has feature maps at {have}, but a detector's neck needs them at {', '.join(map(str, STRIDES))}: "
            "choose a network whose resolution decreases by stage (ConvNets, Swin, MetaFormers; not plain ViT)"
        )
    return [found[stride] for stride in STRIDES]


def _prune(network: nn.Module, tap: int) -> None:
    network.prune_intermediate_layers([tap], prune_norm=True, prune_head=True)


def _parts(network: nn.Module, taps: list[int]) -> list[tuple[list[str], list[str]]]:
    """Return the parts of a network up to each stage: all before stride 4, that and the first stage, and so on.

    Each part has the names of its modules, and those of its tensors that are outside these modules.
    """
    spare = copy.deepcopy(network)
    kept: list[set[str]] = []
    for tap in reversed(taps):
        _prune(spare, tap)
        kept.insert(0, set(spare.state_dict()))
    first = network.feature_info[taps[0]]["module"]
    stem = {key for key in kept[0] if not key.startswith(f"{first}.")}
    parts = []
    for keys in (stem, *kept):
        modules = list(_cover(network, keys))
        within = tuple(f"{name}." for name in modules)
        parts.append((modules, sorted(key for key in keys if not key.startswith(within))))
    return parts


def _cover(module: nn.Module, keys: Collection[str], prefix: str = "") -> Iterator[str]:
    """Yield the names of the largest modules whose tensors are all in `keys`."""
    for name, child in module.named_children():
        own = {f"{prefix}{name}.{key}" for key in child.state_dict()}
        if own and own <= keys:
            yield f"{prefix}{name}"
        elif own:
            yield from _cover(child, keys, f"{prefix}{name}.")
