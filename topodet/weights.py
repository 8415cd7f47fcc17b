"""The weights file: publish, read, verify and load it. One format, in one place.

A published backbone is three files of one stem, `NAME-<first 8 digits of the .pth's SHA-256>`:

- `.pth`: a dict of tensors and plain types that loads with `weights_only=True`. The tensors stand under `model`
  (where Detectron2 looks, with `matching_heuristics` and `__author__`) and `state_dict` (where MMDetection and timm
  look), without the classifier; the card stands under `card`.
- `.safetensors`: the same tensors, the card and a hash over the tensors in its metadata.
- `.json`: the card by itself, with the hashes of both files.

A published detector is the `.pth` alone. Its card has `kind: detector`, the framework, the framework's config as text
and the names of the classes, so that a picture and this file are all that a prediction needs.

Files of others are not trusted: nothing is unpickled that could run code, and every file is checked for damage,
for non-finite values, and against the network it is loaded into.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import pickle
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import safetensors
import timm
import torch
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn

from . import __version__, connectivity
from .errors import ConfigError, TopologyError, WeightsError, unknown_name
from .files import atomic_json, atomic_write, sha256
from .left_out import CAN_LEAVE_OUT, leaving_out_objects
from .models import ARCHITECTURES, TimmTrunk, TopoNet, architecture_arguments, create_timm_network
from .models.chain import Chain, RunWiring
from .models.timm_trunk import RunEdges
from .models.trunk import ARCHITECTURE_ARGUMENTS
from .topology import Topology
from .topology.graph import Edge

FORMAT = 1
# In the place of an architecture's name: the one that the weights file has.
PRETRAINED = "pretrained"
_STEM = "stem.conv.weight"
_RUN = ".wiring.edges"
# What a detector's card says of its backbone, besides its name.
_OF_THE_BACKBONE = ("architecture", "mean", "std", "channel_order")
# What a card says of a network's making, if it is one of timm; and which of timm's options a file must not choose.
_OF_TIMM = ("architecture", "wiring", "rewire", "options", "in_chans")
_OF_OTHER_FILES = {"cache_dir", "checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay"}
_NAME_HASH = re.compile(r"-([0-9a-f]{8,64})\.(?:pth|pt)$")


@dataclass(frozen=True)
class WeightsFile:
    """What a weights file holds.

    Attributes:
        path: where it was read.
        state_dict: the tensors, on the CPU; the averaged (EMA) ones where a training checkpoint has both.
        card: what is known about them (see `publish`); empty for a checkpoint without.
        checkpoint: everything else that a training checkpoint held.
    """

    path: Path
    state_dict: dict[str, Tensor]
    card: dict[str, Any]
    checkpoint: dict[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class LoadReport:
    """How many of the network's tensors a file filled, and the file's card."""

    loaded: int
    total: int
    left_out: tuple[str, ...]
    card: dict[str, Any] = field(repr=False)

    def __str__(self) -> str:
        rest = f" (left at their initial values: {', '.join(self.left_out)})" if self.left_out else ""
        return f"{self.loaded}/{self.total} tensors{rest}"


@dataclass(frozen=True)
class PublishedFiles:
    """Paths of a published backbone."""

    pth: Path
    safetensors: Path
    card: Path


def fetch(source: str | os.PathLike) -> Path:
    """Return a local path: `source` itself, or where its download was put (torch's hub cache, hash checked).

    Raises:
        WeightsError: no such file, or the download failed.
    """
    text = os.fspath(source)
    url = urlparse(text)
    if url.scheme == "file":
        return fetch(url.path)
    if url.scheme not in ("http", "https"):
        path = Path(text).expanduser()
        if not path.is_file():
            raise WeightsError(f"no weights file at {path} (working folder {Path.cwd()}); check the path")
        return path
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(url.path).name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        match = _NAME_HASH.search(path.name)
        try:
            # Writes to a temporary file and renames it once the hash agrees.
            torch.hub.download_url_to_file(text, str(path), hash_prefix=match and match[1])
        except (OSError, RuntimeError) as error:
            raise WeightsError(f"could not download {text}: {error}") from error
    return path


def read(source: str | os.PathLike, *, check_hash: bool = True) -> WeightsFile:
    """Read and verify a weights file: a published backbone, a training checkpoint or a bare state dict.

    Args:
        source: path or URL of a .pth, .pth.tar or .safetensors.
        check_hash: compare the bytes with the hash in a published file's name.

    Raises:
        WeightsError: missing, truncated, a pickle that would run code, other bytes than its hash says, no tensors in
            it, or a value that is not finite.
    """
    path = _fetch_checked(source, check_hash)
    if path.suffix == ".safetensors":
        content, card = _read_safetensors(path, check_hash)
        state_dict, rest = content, {}
    else:
        state_dict, rest = _find_state_dict(path, _read_torch(path))
        card = rest.pop("card", {})
    for name, tensor in state_dict.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            count = int((~torch.isfinite(tensor)).sum())
            raise WeightsError(
                f"{path}: {name} has {count} value(s) that are NaN or infinite; the training that wrote it diverged, "
                "use an earlier checkpoint"
            )
    return WeightsFile(path, state_dict, card, rest)


def read_trained(source: str | os.PathLike) -> WeightsFile:
    """Read what `read` does, and checkpoints that hold more: MMEngine's log, for one, is left out unread (torch 2.6).

    Raises:
        WeightsError: what `read` raises.
    """
    path = fetch(source)
    try:
        with leaving_out_objects(path):
            return read(path)
    except WeightsError as error:
        if CAN_LEAVE_OUT:
            raise
        raise WeightsError(f"{error}. MMEngine's need torch 2.6 or later, this is {torch.__version__}") from error


def read_checkpoint(source: str | os.PathLike) -> dict[str, Any]:
    """Return all that a .pth file holds, its hash checked and nothing unpickled that could run code.

    Raises:
        WeightsError: missing, truncated, a pickle that would run code, or other bytes than its name's hash says.
    """
    return _read_torch(_fetch_checked(source, check_hash=True))


def load(
    model: nn.Module, source: str | os.PathLike | WeightsFile, *, head: bool = False, quiet: bool = False
) -> LoadReport:
    """Load a weights file strictly into a network and print `N/N tensors`.

    Every tensor of the backbone must be in the file with the same shape, and the file must have no other; stages
    that the model was built without are passed over. The classifier is left alone unless `head` is set. A connected
    network takes a file of the original as well, with all edge weights 1.

    Args:
        model: a TopoNet, its `features_only` form, a network of timm, a detector's backbone, or with `head` a detector.
        source: path, URL, or what `read` returned.
        head: load the classifier too; it must fit.
        quiet: do not print (other processes than the first never do).

    Raises:
        WeightsError: what `read` raises; a missing, unexpected or mis-shaped tensor; another topology; a whole
            detector where a backbone is wanted.
    """
    file = source if isinstance(source, WeightsFile) else read(source)
    network = model.network if isinstance(model, TimmTrunk) else model
    own = network.state_dict()
    passes_over = _passes_over(model, head)
    offered = {
        name: tensor
        for name, tensor in file.state_dict.items()
        if not passes_over(name) and (name in own or not is_update_counter(name))
    }
    wanted = {name for name in own if not passes_over(name) and (name in offered or not is_update_counter(name))}
    wanted -= unconnected(network, offered)
    problems = _differences(own, wanted, offered) + other_network(model, file.card)
    if problems and not head and _of_a_detector(offered):
        raise WeightsError(
            f"{file.path} is a whole detector, not a backbone: load it with MODEL.WEIGHTS (Detectron2) or load_from "
            "(MMDetection), in the framework it was trained with, or give a backbone's file here"
        )
    known = f" ({file.card['architecture']})" if file.card.get("architecture") else ""
    misfit = f"{file.path}{known} does not fit {type(model).__name__}: {_other_architecture(model, file.card)}"
    if problems:
        raise WeightsError(
            f"{misfit}{'; '.join(problems)}. Choose the architecture, norm and classes that the file was trained with "
            "(of a pruned network arch='pretrained', or edges='pretrained' for one of timm), or rebuild the network "
            "from it: topodet.weights.build"
        )
    try:
        network.load_state_dict(offered, strict=False)  # names are checked above; `strict` would ask for the classifier
    except WeightsError as error:  # another topology, which the wiring reports edge by edge
        raise WeightsError(f"{misfit}{error}") from error
    left_out = tuple(sorted({name.rpartition(".")[0] for name in own.keys() - wanted if not is_update_counter(name)}))
    report = LoadReport(len(offered), len(wanted), left_out, file.card)
    if not quiet and _first_process():
        print(f"topodet: {report} loaded from {file.path}", flush=True)
    return report


def other_network(model: nn.Module, card: Mapping[str, Any]) -> list[str]:
    """Return, as a sentence, that a card's network computes something else than a backbone of the same tensors."""
    theirs, ours = card.get("rewire"), getattr(model, "rewire", None)
    if None in (theirs, ours) or theirs == ours:
        return []
    return [
        f"the file has rewire={theirs}, the config asks for rewire={ours}: a rewired network computes something else "
        "from the same tensors, and must be trained as such (tools/pretrain.py)"
    ]


def is_update_counter(name: str) -> bool:
    """Whether a tensor only counts a batch normalisation's updates, which frozen ones (Detectron2's) do not do."""
    return name.endswith(".num_batches_tracked")


def unconnected(network: nn.Module, names: Collection[str]) -> set[str]:
    """Return the tensors of a connected network that a checkpoint of the original, which holds `names`, has not.

    None of a rewired or pruned network: with all edge weights 1 it still computes something else than the original.
    """
    rewired = {id(part) for chain in network.modules() if _is_rewired(chain) for part in chain.modules()}
    wirings = [
        name
        for name, module in network.named_modules()
        if isinstance(module, RunWiring) and module.complete and id(module) not in rewired
    ]
    pairs = ({f"{name}.alpha", f"{name}.edges"} for name in wirings)
    return {name for pair in pairs if pair.isdisjoint(names) for name in pair}


def _is_rewired(module: nn.Module) -> bool:
    return isinstance(module, Chain) and module.rewired


def of_timm(name: str, **options: Any) -> WeightsFile:
    """Return the weights that timm publishes for one of its networks, with a card of what timm says of them.

    Args:
        name: of the network, with or without the tag of its weights.
        options: further arguments of `timm.create_model`.

    Raises:
        WeightsError: there are none, or they cannot be fetched.
    """
    try:
        network = timm.create_model(name, pretrained=True, **options)
    except Exception as error:  # the hub's client lets the types of its HTTP library through, whichever that is
        raise WeightsError(
            f"timm's weights of {name} could not be had: {error}. Fetch them where the hub can be reached and give "
            "their path, or start from other weights"
        ) from error
    known = network.pretrained_cfg
    parts = (known.get("architecture", name), known.get("tag"))
    card = {
        "name": ".".join(filter(None, parts)),
        "architecture": parts[0],
        "wiring": "none",
        "rewire": False,
        **{key: _plain(known.get(key)) for key in ("mean", "std", "input_size", "license")},
        "channel_order": "RGB",
    }
    return WeightsFile(Path("timm", card["name"]), network.state_dict(), card)


def build(
    source: str | os.PathLike | WeightsFile, *, num_classes: int = 0, quiet: bool = False, **overrides: Any
) -> nn.Module:
    """Rebuild the network from a weights file alone, graphs included, and load it.

    Args:
        source: path, URL, or what `read` returned.
        num_classes: size of a new classifier; 0 for none.
        quiet: see `load`.
        overrides: further arguments of `TopoNet`, or of `timm.create_model`.

    Returns:
        a `TopoNet`, or the network of timm that the file was trained as, connected where it was.

    Raises:
        WeightsError: what `load` raises; a file that does not tell its network.
    """
    file = source if isinstance(source, WeightsFile) else read(source)
    model = _rebuild(file, _design(file), num_classes=num_classes, **overrides)
    load(model, file, quiet=quiet)
    return model


def backbone_arguments(arch: str, pretrained: str | os.PathLike | None, **overrides: Any) -> tuple[str, dict[str, Any]]:
    """Return the name and the hyper-parameters of a detector's backbone, as `build_blocks` takes them.

    Args:
        arch: a named network, or "pretrained" for that of the weights file, whatever graphs it has: a pruned one, or
            one of nobody's name.
        pretrained: path or URL of the weights file.
        overrides: hyper-parameters that replace the network's own, unless None.

    Raises:
        ConfigError: no such network, or "pretrained" without a file.
        WeightsError: what `read` raises; the file holds no TopoNet.
    """
    if arch != PRETRAINED:
        return arch, architecture_arguments(arch, **overrides)
    if not pretrained:
        raise ConfigError(
            f"arch={PRETRAINED!r} is the network of a weights file, and none is given: set pretrained "
            "(MODEL.TOPONET.PRETRAINED) to a published backbone, or arch to one of: " + ", ".join(ARCHITECTURES)
        )
    file = read(pretrained)
    own = {name: value for name, value in _arguments(file).items() if name in ARCHITECTURE_ARGUMENTS}
    given = {name: value for name, value in overrides.items() if value is not None}
    return file.card.get("architecture") or "toponet", {**own, **given}


def _design(file: WeightsFile, architecture: str | None = None) -> dict[str, Any]:
    """Return what a card says of a network's making, from the file's own card or, of a checkpoint, its options."""
    options = file.checkpoint.get("args") or {}
    architecture = architecture or file.card.get("architecture") or file.checkpoint.get("arch")
    if architecture in ARCHITECTURES or "stages.0.wiring.edges" in file.state_dict:
        arguments = _arguments(file)
        del arguments["topology"]
        return {"architecture": architecture or "toponet", **arguments}
    if file.card.get("wiring"):
        return {key: file.card.get(key) for key in _OF_TIMM}
    if not architecture:
        raise WeightsError(f"{file.path} does not tell which network it was trained as; give its architecture")
    # The tensors tell whether there are edges: an architecture may have them of its own, without any option.
    connected = any(name.endswith(".wiring.edges") for name in file.state_dict)
    return {
        "architecture": architecture,
        "wiring": _edge_weights(file) if connected else "none",
        "rewire": options.get("rewire") is not None,
        "options": _plain(options.get("model_kwargs") or {}),
        "in_chans": options.get("in_chans") or (options.get("input_size") or [3])[0],
    }


def _arguments(file: WeightsFile) -> dict[str, Any]:
    """Return the arguments of `TopoNet` that rebuild a file's network."""
    return {
        **describe(file.state_dict),
        "edge_weights": _edge_weights(file),
        "norm_layer": _trained_argument(file, "norm_layer", "batchnorm2d"),
    }


def _edge_weights(file: WeightsFile) -> str:
    """Return "fixed" where the training left the edge weights as they were, for whichever reason, else "learned"."""
    options = file.checkpoint.get("args") or {}
    if options.get("freeze_alpha"):
        return "fixed"
    return options.get("connect") or options.get("rewire") or _trained_argument(file, "edge_weights", "learned")


def _rebuild(file: WeightsFile, design: Mapping[str, Any], **arguments: Any) -> nn.Module:
    """Build, without weights, the network of a card.

    Raises:
        WeightsError: the card asks for more than a network, or for one that cannot be made here.
    """
    if "nodes" in design:
        return TopoNet(**{**_arguments(file), **arguments})
    name, options = str(design["architecture"]), dict(design["options"] or {})
    refuse_other_files(file, name, options)
    known = {key: design[key] for key in ("wiring", "rewire", "in_chans")}
    try:
        return create_timm_network(name, edges=run_edges(file.state_dict), **{**known, **options, **arguments})
    except ConfigError as error:
        raise WeightsError(f"{file.path}: its network cannot be built here: {error}") from error


def refuse_other_files(file: WeightsFile, name: str, options: Collection[str]) -> None:
    """Refuse a stranger's file whose network, by its name or options in timm, would be read from somewhere else.

    Raises:
        WeightsError: names the file and what it asks for.
    """
    asked = [option for option in options if option.lower() in _OF_OTHER_FILES]
    if ":" in name or asked:
        raise WeightsError(f"{file.path} is refused: its network {name} asks for other files {asked or ''}")


def describe(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the arguments of `TopoNet` (nodes, width, in_chans, topology) that the tensors tell.

    Raises:
        WeightsError: no TopoNet's tensors.
    """
    try:
        width, in_chans = state_dict[_STEM].shape[:2]
        topologies = []
        while (edges := state_dict.get(f"stages.{len(topologies)}.wiring.edges")) is not None:
            # The output node is the highest one, and every node but the first is some edge's target.
            topologies.append(Topology(int(edges.max()) + 1, edges.tolist()))
    except (KeyError, ValueError, RuntimeError, TopologyError) as error:
        raise WeightsError(f"these are not the tensors of a TopoNet: {error}") from error
    if not topologies:
        raise WeightsError("these are not the tensors of a TopoNet: no stages.0.wiring.edges among them")
    return {"nodes": [t.num_nodes for t in topologies], "width": width, "in_chans": in_chans, "topology": topologies}


def run_edges(state_dict: Mapping[str, Tensor]) -> dict[str, list[Edge]]:
    """Return the edges of a connected network's runs that its tensors tell, as `create_timm_network` takes them.

    The names are those of the network, also where the tensors are a whole detector's.

    Raises:
        WeightsError: edges that are no pairs.
    """
    edges = {name.removesuffix(".edges"): tensor for name, tensor in state_dict.items() if name.endswith(_RUN)}
    if _of_a_detector(edges):
        edges = {name.partition(f".{TimmTrunk.network_prefix}")[2]: tensor for name, tensor in edges.items()}
    for name, tensor in edges.items():
        if tensor.ndim != 2 or tensor.shape[1] != 2:
            raise WeightsError(
                f"{name}.edges is {list(tensor.shape)}, not [edges, 2]: the file is damaged, fetch it again"
            )
    return {name: [tuple(edge) for edge in tensor.tolist()] for name, tensor in edges.items()}


def edges_left(edges: RunEdges | str | None, pretrained: str | os.PathLike | bool | None) -> RunEdges | None:
    """Return `edges` as `TimmTrunk` takes them; those of the weights file for "pretrained".

    Raises:
        ConfigError: "pretrained" without a file, or another word.
        WeightsError: what `read` raises.
    """
    if not isinstance(edges, str):
        return edges
    if edges != PRETRAINED:
        raise ConfigError(unknown_name("edges", edges, (PRETRAINED,)))
    if not pretrained or pretrained is True:
        raise ConfigError(
            f"edges={PRETRAINED!r} are those of a weights file, and none is given: set pretrained "
            "(MODEL.CONNECTED_TIMM.PRETRAINED) to a published backbone, or leave edges out"
        )
    return run_edges(read(pretrained).state_dict)


def within_detector(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a detector's TopoNet, by the names that a backbone's file has; none if there is none."""
    prefix = next((name.removesuffix(_STEM) for name in state_dict if name.endswith(_STEM)), None)
    if prefix is None:
        return {}
    return {name.removeprefix(prefix): tensor for name, tensor in state_dict.items() if name.startswith(prefix)}


def publish(
    checkpoint: str | os.PathLike,
    folder: str | os.PathLike,
    *,
    name: str | None = None,
    architecture: str | None = None,
    licence: str = "Apache-2.0",
    notes: str = "",
    prune: Mapping[str, Any] | None = None,
) -> PublishedFiles:
    """Turn a training checkpoint into a published backbone, and verify it by loading it back.

    The averaged weights (EMA) are taken where there are any; the classifier is left out. Edge weights that the training
    left as they were (--freeze-alpha) are fixed ones in the card.

    Args:
        checkpoint: what `topodet.pretrain` saved.
        folder: where the three files go.
        name: stem before the hash; the architecture's name when omitted.
        architecture: name of the network; read from the checkpoint when omitted.
        licence: of the weights, as SPDX identifier.
        notes: one line for the card, e.g. the data.
        prune: arguments of `connectivity.prune`, to publish what is left of the network without its weak edges. The
            card has these and not the metrics, which are those of the whole network.

    Raises:
        WeightsError: what `read` and `load` raise.
        ConfigError: what `connectivity.prune` raises.
        OSError: the files could not be written; nothing half-written is left.
    """
    file = read(checkpoint)
    model = _rebuild(file, _design(file, architecture), num_classes=0)
    passes_over = _passes_over(model, head=False)
    state_dict = {name: tensor.contiguous() for name, tensor in file.state_dict.items() if not passes_over(name)}
    load(model, WeightsFile(file.path, state_dict, {}), quiet=True)
    if prune:
        model = connectivity.prune(model, **prune)
        state_dict = model.state_dict()
    design = _design(replace(file, state_dict=state_dict), architecture)
    data = file.checkpoint.get("data_config") or file.card  # what was published before has it there
    graphs = {name: wiring.topology for name, wiring in connectivity.wirings(model).items()}
    card = {
        "format": FORMAT,
        "name": name or design["architecture"],
        **design,
        "wirings": list(graphs),
        "topology": [json.loads(topology.to_json()) for topology in graphs.values()],
        "parameters": sum(p.numel() for p in model.parameters()),
        "tensors": len(state_dict),
        "mean": _plain(data.get("mean")),
        "std": _plain(data.get("std")),
        "channel_order": "RGB",
        "input_size": _plain(data.get("input_size")),
        "interpolation": data.get("interpolation"),
        "crop_pct": data.get("crop_pct"),
        "weights": file.card.get("weights")
        or ("ema" if "state_dict_ema" in file.checkpoint.get("held", ()) else "last"),
        "epoch": file.checkpoint.get("epoch", file.card.get("epoch")),
        "metrics": {} if prune else _plain((file.checkpoint.get("history") or [file.card.get("metrics", {})])[-1]),
        "pruned": _plain(prune or {}),
        "sparsity": connectivity.sparsity(model),
        "recipe": _plain(file.checkpoint.get("args") or file.card.get("recipe") or {}),
        "licence": licence,
        "notes": notes,
        "source_sha256": sha256(file.path),
        "topodet": __version__,
    }
    return _write(Path(folder), state_dict, card)


def publish_detector(
    file: WeightsFile,
    folder: str | os.PathLike,
    *,
    name: str,
    framework: str,
    config: str,
    classes: Sequence[str],
    licence: str = "Apache-2.0",
    notes: str = "",
) -> Path:
    """Write a trained detector as `NAME-<hash>.pth`, without what only its training needed, and read it back.

    Args:
        file: the checkpoint, its tensors known to fill the model that `config` describes.
        folder: where the file goes.
        name: stem before the hash.
        framework: that `config` is for, e.g. "detectron2".
        config: of the detector, as text.
        classes: names, by index.
        licence: of the weights, as SPDX identifier.
        notes: one line for the card, e.g. the data.

    Returns:
        the path of the file.

    Raises:
        WeightsError: the file does not read back as it was written.
        OSError: it could not be written; nothing half-written is left.
    """
    state_dict = {key: tensor.contiguous() for key, tensor in file.state_dict.items()}
    card = {
        "format": FORMAT,
        "kind": "detector",
        "name": name,
        "framework": framework,
        "config": config,
        "classes": list(classes),
        # What the file's card says of the images, which the detector must go on to show its backbone.
        **{key: file.card.get(key) for key in _OF_THE_BACKBONE},
        "backbone": file.card.get("name"),
        "tensors": len(state_dict),
        "iteration": _plain(file.checkpoint.get("iteration")),
        "licence": licence,
        "notes": notes,
        "source_sha256": sha256(file.path),
        "topodet": __version__,
    }
    # No `matching_heuristics`: a detector's names are its own, and Detectron2 takes them as they are.
    path = _save_hashed({"model": state_dict, "__author__": "topodet", "card": card}, Path(folder), name)
    back = read_detector(path, framework)
    if back.card != card or _tensors_sha256(back.state_dict) != _tensors_sha256(state_dict):
        raise WeightsError(f"{path} does not read back as it was written; do not use it, publish again")
    return path


def backbone_card(card: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a file's card says of the backbone: all of a backbone's own card, little of a detector's."""
    if card.get("kind") != "detector":
        return dict(card)
    known = {key: card.get(key) for key in _OF_THE_BACKBONE} | {"name": card.get("backbone")}
    return {key: value for key, value in known.items() if value is not None}


def read_detector(source: str | os.PathLike, framework: str) -> WeightsFile:
    """Read and verify a published detector.

    Args:
        source: path or URL.
        framework: that the caller speaks for.

    Raises:
        WeightsError: what `read` raises; no published detector, or one for another framework.
    """
    file = read(source)
    card = file.card
    if card.get("kind") != "detector":
        known = card.get("architecture") or _STEM in file.state_dict
        backbone = known and not _of_a_detector(file.state_dict)
        what = "a backbone" if backbone else "a checkpoint without config and class names"
        raise WeightsError(
            f"{file.path} is {what}, not a published detector; make one of a training's output with "
            "tools/publish_model.py --detector CHECKPOINT --config CONFIG, or give --config where a tool takes it"
        )
    if card.get("framework") != framework:
        raise WeightsError(f"{file.path} is a detector for {card.get('framework')!r}, not for {framework!r}")
    classes = card.get("classes")
    if not isinstance(card.get("config"), str) or not isinstance(classes, list) or not _all_text(classes):
        raise WeightsError(
            f"{file.path} is no intact detector: its card has no config or no class names; fetch it again"
        )
    return file


def preprocessing_problems(
    card: Mapping[str, Any], *, mean: Sequence[float], std: Sequence[float], channel_order: str
) -> list[str]:
    """Compare a detector's preprocessing with the card; return a sentence for each disagreement.

    Args:
        card: of the published backbone or detector. None for mean, std or channel_order: not known, nothing to compare.
        mean, std: of the detector, in 0..255 and in the detector's channel order.
        channel_order: "RGB" or "BGR", as the network sees the image.
    """
    problems = []
    trained_on = card.get("channel_order", "RGB")
    if trained_on is not None and channel_order != trained_on:
        problems.append(f"the detector feeds {channel_order} images, the weights were trained on {trained_on}")
        mean, std = list(mean)[::-1], list(std)[::-1]
    for what, theirs in (("mean", mean), ("std", std)):
        if card.get(what) is None:
            continue
        ours = [255 * value for value in card[what]]
        # Frameworks print these with two or three decimals.
        if len(theirs) != len(ours) or any(not math.isclose(a, b, abs_tol=0.05) for a, b in zip(ours, theirs)):
            problems.append(
                f"the detector's {what} is {[round(float(v), 3) for v in theirs]}, "
                f"the weights were trained with {[round(v, 3) for v in ours]}"
            )
    return problems


def _write(folder: Path, state_dict: dict[str, Tensor], card: dict[str, Any]) -> PublishedFiles:
    content = {
        "model": state_dict,
        "state_dict": state_dict,
        "matching_heuristics": True,
        "__author__": "topodet",
        "card": card,
    }
    pth = _save_hashed(content, folder, card["name"])
    stem = pth.stem
    metadata = {"format": "pt", "card": json.dumps(card), "tensors_sha256": _tensors_sha256(state_dict)}
    twin = atomic_write(folder / f"{stem}.safetensors", safetensors_bytes(state_dict, metadata))
    hashes = {path.name: sha256(path) for path in (pth, twin)}
    files = PublishedFiles(pth, twin, atomic_json(folder / f"{stem}.json", {**card, "sha256": hashes}))
    for path in (files.pth, files.safetensors):
        back = read(path)
        if back.card != card or _tensors_sha256(back.state_dict) != metadata["tensors_sha256"]:
            raise WeightsError(f"{path} does not read back as it was written; do not use it, publish again")
    return files


def _save_hashed(content: dict[str, Any], folder: Path, name: str) -> Path:
    # Into memory first: the hash is part of the name, and the archive must not contain a temporary name.
    buffer = io.BytesIO()
    torch.save(content, buffer)
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()
    return atomic_write(folder / f"{name}-{digest[:8]}.pth", buffer.getvalue())


def _fetch_checked(source: str | os.PathLike, check_hash: bool) -> Path:
    path = fetch(source)
    match = _NAME_HASH.search(path.name)
    if check_hash and match:
        digest = sha256(path)
        if not digest.startswith(match[1]):
            raise WeightsError(
                f"{path} is damaged or was changed: its name says SHA-256 {match[1]}..., its bytes have "
                f"{digest[:8]}...; fetch it again, or rename it if you changed it yourself"
            )
    return path


def _read_torch(path: Path) -> dict[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's own message advises to switch the protection off; for a file of others that is the wrong advice.
        reason = next((line for line in str(error).splitlines() if "Unsupported" in line or "GLOBAL" in line), "")
        raise WeightsError(
            f"{path} is refused: it is no file of plain tensors, it holds pickled Python objects or damaged bytes, and "
            f"unpickling could run code. Nothing of it was executed. {reason} Ask for a published file or .safetensors"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise WeightsError(
            f"{path} ({path.stat().st_size} bytes) cannot be read: it is truncated or no torch file ({error}); "
            "fetch or save it again"
        ) from error
    if not isinstance(content, dict):
        raise WeightsError(f"{path} holds a {type(content).__name__}, expected a state dict or a checkpoint")
    return content


def _read_safetensors(path: Path, check_hash: bool) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            state_dict = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        card = json.loads(metadata.get("card", "{}"))
    except (safetensors.SafetensorError, json.JSONDecodeError) as error:
        raise WeightsError(
            f"{path} ({path.stat().st_size} bytes) is truncated or damaged ({error}); fetch it again"
        ) from error
    expected = metadata.get("tensors_sha256")
    if check_hash and expected and _tensors_sha256(state_dict) != expected:
        raise WeightsError(
            f"{path} is damaged or was changed: its tensors do not have the hash it states; fetch it again"
        )
    return state_dict, card


def _find_state_dict(path: Path, content: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of a checkpoint and what else it holds, the names of its state dicts under `held`."""
    keys = ("state_dict_ema", "state_dict", "model")
    held = [key for key in keys if isinstance(content.get(key), Mapping)]
    state_dict = content[held[0]] if held else content
    if not state_dict or not all(isinstance(value, Tensor) for value in state_dict.values()):
        odd = next(
            (f"{key!r} is a {type(v).__name__}" for key, v in state_dict.items() if not isinstance(v, Tensor)), "empty"
        )
        raise WeightsError(
            f"{path} has no state dict ({odd}); expected tensors under one of {keys}, or nothing but tensors"
        )
    rest = {key: value for key, value in content.items() if key not in keys} if held else {}
    return dict(state_dict), {**rest, "held": held}


def _differences(own: Mapping[str, Tensor], wanted: set[str], offered: Mapping[str, Tensor]) -> list[str]:
    """Return what keeps `offered` from filling `wanted`: a sentence for each kind, with examples."""

    def some(names: Sequence[str]) -> str:
        return ", ".join(names[:3]) + (f", ... ({len(names)} in all)" if len(names) > 3 else "")

    missing = [name for name in own if name in wanted and name not in offered]
    unexpected = [name for name in offered if name not in wanted]
    shapes = [
        f"{name} is {list(tensor.shape)} in the file and {list(own[name].shape)} in the model"
        for name, tensor in offered.items()
        # A graph of another size is another topology, which the wiring itself reports edge by edge.
        if name in wanted and tensor.shape != own[name].shape and not name.endswith(("wiring.edges", "wiring.alpha"))
    ]
    problems = []
    if missing:
        problems.append(f"missing in the file: {some(missing)}")
    if unexpected:
        problems.append(f"unknown to the model: {some(unexpected)}")
    if shapes:
        problems.append(some(shapes))
    return problems


def _other_architecture(model: nn.Module, card: Mapping[str, Any]) -> str:
    """Return the names of both architectures where the card and a framework's backbone have different ones, or ""."""
    theirs, ours = card.get("architecture"), getattr(model, "arch", None)
    if theirs and ours and theirs != ours.partition(".")[0]:
        return f"the file is {theirs}, the config asks for {ours}; "
    theirs, ours = card.get("wiring"), getattr(model, "wiring", None)
    if theirs and ours and theirs != ours and "none" in (theirs, ours):
        return f"the file has wiring={theirs!r}, the config asks for wiring={ours!r}; "
    return ""


def _of_a_detector(names: Collection[str]) -> bool:
    """Whether tensors of these names are those of a whole detector, in either framework."""
    return any(name.startswith("backbone.") for name in names)


def _passes_over(model: nn.Module, head: bool) -> Callable[[str], bool]:
    """Return which tensors are none of what `load` fills: the classifier, and what the model was built without."""
    unbuilt = getattr(model, "passes_over", lambda name: False)
    classifier = () if head else _classifier(model)
    return lambda name: name.startswith(classifier) or unbuilt(name)


def _classifier(model: nn.Module) -> tuple[str, ...]:
    """Return what the names of a timm network's classifier begin with; nothing for other modules."""
    if not hasattr(model, "get_classifier"):
        return ()
    found = model.get_classifier()
    parts = {id(part) for part in (found if isinstance(found, tuple | list) else (found,))}
    return tuple(f"{name}." for name, module in model.named_modules() if id(module) in parts)


def _trained_argument(file: WeightsFile, name: str, default: str) -> str:
    """Return an argument that the tensors do not tell: as the training set it, or as the named network has it."""
    given = file.card or file.checkpoint.get("args", {}).get("model_kwargs") or {}
    return given.get(name, ARCHITECTURES.get(file.checkpoint.get("arch"), {}).get(name, default))


def _tensors_sha256(state_dict: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(state_dict):
        tensor = state_dict[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _plain(value: Any) -> Any:
    """Return `value` as JSON types; a number that JSON cannot hold becomes None."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _all_text(values: Sequence[Any]) -> bool:
    return all(isinstance(value, str) for value in values)


def _first_process() -> bool:
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
