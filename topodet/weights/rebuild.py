"""Rebuild a network from the tensors and the card of a weights file alone."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook

from ..errors import ConfigError, TopodetError, TopologyError, WeightsError, unknown_name
from ..models import ARCHITECTURES, TimmTrunk, TopoNet, architecture_arguments, create_timm_network
from ..models.connected import RunEdges
from ..models.trunk import ARCHITECTURE_ARGUMENTS
from ..topology import Topology
from ..topology.graph import MAX_EDGES, MAX_NODES, Edge
from .card import plain
from .file import STEM, WeightsFile, of_detector, read
from .load import load
from .model_options import check_network

# Given instead of an architecture's name: the architecture of the weights file.
PRETRAINED = "pretrained"
_RUN = ".wiring.edges"
# Modules that a network may have: some per tensor of the file, and those without tensors, such as activations.
_PER_TENSOR, _MODULES = 10, 10_000
_CLASSIFIER = 100_000_000  # values that a network may have beyond those of its file: a large classifier
# Entries of a card that describe a network of timm.
_OF_TIMM = ("architecture", "wiring", "connect_nodes", "rewire", "options", "in_chans")


def build(
    source: str | os.PathLike | WeightsFile, *, num_classes: int = 0, quiet: bool = False, **overrides: Any
) -> nn.Module:
    """Rebuild the network, including its graphs, from a weights file alone, and load it.

    Args:
        source: path, URL or hf-hub:USER/REPO, or a result of `read`.
        num_classes: number of classes of a new classifier; 0 for none.
        quiet: see `load`.
        overrides: additional arguments of `TopoNet`, or of `timm.create_model`.

    Returns:
        a `TopoNet`, or the timm network of the file, connected if it was trained so.

    Raises:
        WeightsError: as `load`; a file that does not describe its network.
    """
    file = source if isinstance(source, WeightsFile) else read(source)
    model = build_network(file, network_design(file), num_classes=num_classes, **overrides)
    load(model, file, quiet=quiet)
    return model


def backbone_arguments(arch: str, pretrained: str | os.PathLike | None, **overrides: Any) -> tuple[str, dict[str, Any]]:
    """Return the name and the hyper-parameters of a detector's backbone, as arguments of `build_blocks`.

    Args:
        arch: a named network, or "pretrained" for that of the weights file, whatever graphs it has, e.g. a pruned one
            or one without a name.
        pretrained: path, URL or hf-hub:USER/REPO of the weights file.
        overrides: hyper-parameters that replace the network's own, unless None.

    Raises:
        ConfigError: no such network, or "pretrained" without a file.
        WeightsError: as `read`; the file contains no TopoNet.
    """
    if arch != PRETRAINED:
        return arch, architecture_arguments(arch, **overrides)
    if not pretrained:
        raise ConfigError(
            f"arch={PRETRAINED!r} is the network of the weights file, but none is given: set pretrained "
            "(MODEL.TOPONET.PRETRAINED) to a published backbone, or arch to one of: " + ", ".join(ARCHITECTURES)
        )
    file = read(pretrained)
    own = {name: value for name, value in _arguments(file).items() if name in ARCHITECTURE_ARGUMENTS}
    given = {name: value for name, value in overrides.items() if value is not None}
    return file.card.get("architecture") or "toponet", {**own, **given}


def infer_architecture(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the arguments of `TopoNet` (nodes, width, in_chans, topology), inferred from the tensors.

    Raises:
        WeightsError: the tensors are not a TopoNet's.
    """
    try:
        width, in_chans = state_dict[STEM].shape[:2]
        topologies = []
        while (edges := state_dict.get(f"stages.{len(topologies)}.wiring.edges")) is not None:
            _check_edges(f"stages.{len(topologies)}.wiring", edges)
            # The output node is the highest one, and every node but the first is the target of an edge.
            topologies.append(Topology(int(edges.max()) + 1, edges.tolist()))
            _check_nodes(state_dict, len(topologies) - 1, topologies[-1].num_nodes, width)
    except (KeyError, ValueError, RuntimeError, TopologyError) as error:
        raise WeightsError(f"these are not the tensors of a TopoNet: {error}") from error
    if not topologies:
        raise WeightsError("these are not the tensors of a TopoNet: no stages.0.wiring.edges among them")
    return {"nodes": [t.num_nodes for t in topologies], "width": width, "in_chans": in_chans, "topology": topologies}


def run_edges(state_dict: Mapping[str, Tensor]) -> dict[str, list[Edge]]:
    """Return the edges in the tensors of a connected network, in the format of `create_timm_network`.

    The names are those of the network, even if the tensors are a whole detector's.

    Raises:
        WeightsError: edges that are not pairs.
    """
    edges = {name.removesuffix(".edges"): tensor for name, tensor in state_dict.items() if name.endswith(_RUN)}
    if of_detector(edges):
        edges = {name.partition(f".{TimmTrunk.network_prefix}")[2]: tensor for name, tensor in edges.items()}
    for name, tensor in edges.items():
        _check_edges(name, tensor)
    return {name: [tuple(edge) for edge in tensor.tolist()] for name, tensor in edges.items()}


def _check_edges(wiring: str, edges: Tensor) -> None:
    """Refuse a tensor that is not a list of edges, or that is too long."""
    if edges.ndim != 2 or edges.shape[1] != 2 or edges.dtype != torch.int64:
        what = f"{str(edges.dtype).removeprefix('torch.')} {list(edges.shape)}"
        raise WeightsError(f"{wiring}.edges is {what}, not int64 [edges, 2]: the file is damaged, fetch it again")
    if not 0 < len(edges) <= MAX_EDGES or not 0 <= int(edges.max()) < MAX_NODES:
        raise WeightsError(
            f"{wiring}.edges has {len(edges):,} edges and nodes up to {int(edges.max()) if len(edges) else 'none'}; "
            f"at most {MAX_EDGES:,} edges of {MAX_NODES:,} nodes are allowed"
        )


def _check_nodes(state_dict: Mapping[str, Tensor], stage: int, count: int, width: int) -> None:
    """Refuse a stage whose nodes are not in the file, so that the network is not larger than the file."""
    wanted = width * 2 ** (stage + 1)
    for node in range(count):
        tensor = state_dict.get(f"stages.{stage}.nodes.{node}.conv_pw.weight")
        if tensor is None or tensor.shape[0] != wanted:
            found = "is missing" if tensor is None else f"has {tensor.shape[0]}"
            raise WeightsError(
                f"these are not the tensors of a TopoNet: stage {stage} has {count} nodes of {wanted} channels, but "
                f"node {node} {found}"
            )


def resolve_edges(edges: RunEdges | str | None, pretrained: str | os.PathLike | bool | None) -> RunEdges | None:
    """Return `edges` in the format of `TimmTrunk`; those of the weights file for "pretrained".

    Raises:
        ConfigError: "pretrained" without a file, or another string.
        WeightsError: what `read` raises.
    """
    if not isinstance(edges, str):
        return edges
    if edges != PRETRAINED:
        raise ConfigError(unknown_name("edges", edges, (PRETRAINED,)))
    if not pretrained or pretrained is True:
        raise ConfigError(
            f"edges={PRETRAINED!r} are those of the weights file, but none is given: set pretrained "
            "(MODEL.CONNECTED_TIMM.PRETRAINED) to a published backbone, or leave edges out"
        )
    return run_edges(read(pretrained).state_dict)


def extract_backbone(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a detector's TopoNet, with the names of a backbone's file; empty if there is none."""
    prefix = next((name.removesuffix(STEM) for name in state_dict if name.endswith(STEM)), None)
    if prefix is None:
        return {}
    return {name.removeprefix(prefix): tensor for name, tensor in state_dict.items() if name.startswith(prefix)}


def network_design(file: WeightsFile, architecture: str | None = None) -> dict[str, Any]:
    """Return the network description of a card: the file's own or, for a checkpoint, one made from its options."""
    options = _options(file)
    architecture = architecture or file.card.get("architecture") or file.checkpoint.get("arch")
    if architecture in ARCHITECTURES or "stages.0.wiring.edges" in file.state_dict:
        arguments = _arguments(file)
        del arguments["topology"]
        return {"architecture": architecture or "toponet", **arguments}
    if file.card.get("wiring"):
        known = {key: file.card.get(key) for key in _OF_TIMM}
        return {**known, "connect_nodes": known["connect_nodes"] or "residuals"}  # the only choice in earlier versions
    if not architecture:
        raise WeightsError(f"{file.path} does not say which network it was trained as; give its architecture")
    # Only the tensors show whether there are edges: an architecture may have its own, without any option.
    connected = any(name.endswith(".wiring.edges") for name in file.state_dict)
    return {
        "architecture": architecture,
        "wiring": _edge_weights(file) if connected else "none",
        "connect_nodes": options.get("connect_nodes") or "residuals",
        "rewire": options.get("rewire") is not None,
        "options": plain(options.get("model_kwargs") or {}),
        "in_chans": _in_chans(file, options),
    }


def build_network(file: WeightsFile, design: Mapping[str, Any], **arguments: Any) -> nn.Module:
    """Build the network of a card, without weights.

    Raises:
        WeightsError: the card has options that are not allowed, or a network that cannot be built here.
    """
    if "nodes" in design:
        try:
            return TopoNet(**{**_arguments(file), **arguments})
        except (ConfigError, TypeError, ValueError, AttributeError) as error:
            raise WeightsError(f"{file.path}: its network cannot be built here: {error}") from error
    name = design["architecture"]
    options = check_network(file.path, name, design["options"] or {}, file.state_dict)
    known = {key: design[key] for key in ("wiring", "connect_nodes", "rewire", "in_chans")}
    make = partial(create_timm_network, name, edges=run_edges(file.state_dict), **{**known, **options, **arguments})
    try:
        check_size(file, make)
        return make()
    except WeightsError:
        raise
    except Exception as error:  # timm can raise anything for untrusted options
        message = f"{file.path}: its network cannot be built here: {error}"
        if design["wiring"] != "none" and not (file.card or _options(file).get("connect_nodes")):
            message += (
                ". The file does not say which nodes its edges connect: save it with "
                "args={'connect': 'learned', 'connect_nodes': 'auto'} beside state_dict, or as given to `connect`"
            )
        raise WeightsError(message) from error


def check_size(file: WeightsFile, make: Callable[[], nn.Module]) -> None:
    """Refuse a network that would be much larger than the file that describes it, before it takes any memory.

    Raises:
        WeightsError: names both sizes.
    """
    held = sum(tensor.numel() for tensor in file.state_dict.values())
    try:
        with torch.device("meta"), _at_most_modules(file):
            network = make()
    except WeightsError:
        raise
    except (NotImplementedError, RuntimeError):  # some networks of timm cannot be created on the meta device
        return
    asked = sum(tensor.numel() for tensor in chain(network.parameters(), network.buffers()))
    if asked > 4 * held + _CLASSIFIER:
        raise WeightsError(
            f"{file.path} is refused: it describes a network of {asked:,} values, but contains {held:,} of them"
        )


@contextlib.contextmanager
def described_by(file: WeightsFile, framework: str) -> Iterator[None]:
    """Turn any error that a framework raises while building an untrusted file's network into one error.

    Raises:
        WeightsError: names the file and the framework's message; topodet's own errors are not changed.
    """
    try:
        with _at_most_modules(file):
            yield
    except TopodetError:
        raise
    except Exception as error:
        text = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise WeightsError(
            f"{file.path} is refused: {framework} cannot build what its config describes ({text})"
        ) from error


@contextlib.contextmanager
def _at_most_modules(file: WeightsFile) -> Iterator[None]:
    """Stop the creation of a network with far more modules than a file has tensors, to save time."""
    count = _PER_TENSOR * len(file.state_dict) + _MODULES
    made = itertools.count(1)

    def register(*_: Any) -> None:
        if next(made) > count:
            raise WeightsError(f"{file.path} is refused: it describes a network of more than {count:,} modules")

    handle = register_module_module_registration_hook(register)
    try:
        yield
    finally:
        handle.remove()


def _arguments(file: WeightsFile) -> dict[str, Any]:
    """Return the arguments of `TopoNet` that rebuild a file's network."""
    output_stride = _trained_argument(file, "output_stride", None)
    return {
        **infer_architecture(file.state_dict),
        "edge_weights": _edge_weights(file),
        "norm_layer": _trained_argument(file, "norm_layer", "batchnorm2d"),
        **({} if output_stride is None else {"output_stride": output_stride}),
    }


def _edge_weights(file: WeightsFile) -> str:
    """Return "fixed" if the training did not change the edge weights, for whatever reason, else "learned"."""
    options = _options(file)
    if options.get("freeze_alpha"):
        return "fixed"
    return options.get("connect") or options.get("rewire") or _trained_argument(file, "edge_weights", "learned")


def _trained_argument(file: WeightsFile, name: str, default: Any) -> Any:
    """Return an argument that the tensors do not show: that of the training, or the named network's."""
    given = file.card or _options(file).get("model_kwargs") or {}
    named = ARCHITECTURES.get(file.checkpoint.get("arch"), {}).get(name, default)
    return given.get(name, named) if isinstance(given, Mapping) else named


def _options(file: WeightsFile) -> Mapping[str, Any]:
    """Return the options of the training that wrote a checkpoint."""
    return file.checkpoint.get("args") or {}


def _in_chans(file: WeightsFile, options: Mapping[str, Any]) -> int:
    size = options.get("input_size")
    channels = options.get("in_chans") or (size[0] if isinstance(size, list | tuple) and size else 3)
    if not isinstance(channels, int) or not 0 < channels <= 4096:
        raise WeightsError(f"{file.path} is damaged: its network expects images of {str(channels)[:40]} channels")
    return channels


def from_timm(name: str, **options: Any) -> WeightsFile:
    """Return the weights that timm publishes for one of its networks, with a card of timm's metadata.

    Args:
        name: name of the network, with or without the tag of its weights.
        options: additional arguments of `timm.create_model`.

    Raises:
        WeightsError: there are none, or they cannot be fetched.
    """
    try:
        network = timm.create_model(name, pretrained=True, **options)
    except Exception as error:  # huggingface_hub also raises errors of its HTTP library
        raise WeightsError(
            f"timm's weights of {name} could not be downloaded: {error}. Download them where the hub can be reached "
            "and give their path, or start from other weights"
        ) from error
    known = network.pretrained_cfg
    parts = (known.get("architecture", name), known.get("tag"))
    card = {
        "name": ".".join(filter(None, parts)),
        "architecture": parts[0],
        "wiring": "none",
        "connect_nodes": "residuals",
        "rewire": False,
        **{key: plain(known.get(key)) for key in ("mean", "std", "input_size", "license")},
        "channel_order": "RGB",
    }
    return WeightsFile(Path("timm", card["name"]), network.state_dict(), card)
