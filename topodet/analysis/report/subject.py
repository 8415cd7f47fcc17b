"""The network of a report: from a file, a run of `topodet pretrain`, or a timm network by name."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from ... import weights
from ...connectivity import wirings
from ...errors import ConfigError, TopologyError, WeightsError
from ...models import Wiring, check_timm_name
from ...pretrain import build
from ...pretrain.command_line import parse_over
from ...pretrain.group import Group
from ...pretrain.saver import LAST
from ...topology.paths import subgraph
from ...weights import WeightsFile

_BEST = "model_best.pth.tar"
_LOOKS_LIKE_A_FILE = re.compile(r"[/\\]|\.(pth|pt|tar|safetensors)$")


@dataclass(frozen=True)
class Snapshot:
    """The edge weights of each wiring, by its name, after an epoch; in the order of the wiring's edges."""

    epoch: int
    alphas: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True)
class Subject:
    """A network with a wiring, and what is known about it.

    Attributes:
        source: the given source.
        kind: description of the source.
        architecture: its name, "" if the file does not tell.
        model: the network; only the wirings if the file does not tell their network.
        input_size: (C, H, W) of its images.
        facts: other information in its file: epoch, which weights, license and so on.
        snapshots: edge weights of the epochs with saved checkpoints.
        history: one row per epoch of a run, by the names in summary.csv; None for missing numbers.
        notes: what was left out, and why.
    """

    source: str
    kind: str
    architecture: str
    model: nn.Module = field(repr=False)
    input_size: tuple[int, int, int] = (3, 224, 224)
    facts: Mapping[str, Any] = field(default_factory=dict)
    snapshots: tuple[Snapshot, ...] = ()
    history: tuple[Mapping[str, float | None], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def whole(self) -> bool:
        """Whether the whole network is available, not only its wirings."""
        return not isinstance(self.model, Wirings)


class Wirings(nn.Module):
    """The wirings of a state dict whose network is unknown; has no forward pass."""

    def __init__(self, state_dict: Mapping[str, Tensor]):
        super().__init__()
        for name in _wired(state_dict):
            edges, alpha = state_dict[f"{name}.edges"], state_dict[f"{name}.alpha"]
            try:
                topology, numbers = subgraph([tuple(edge) for edge in edges.tolist()])
                wiring = Wiring(topology, numbers=numbers)
                wiring.load_state_dict({"edges": edges, "alpha": alpha})
            except (TopologyError, RuntimeError) as error:
                raise WeightsError(f"{name} is not a wiring: {error}") from error
            parent: nn.Module = self
            *path, last = name.split(".")
            for part in path:
                if part not in parent._modules:
                    parent.add_module(part, nn.Module())
                parent = parent._modules[part]
            parent.add_module(last, wiring)


def open_subject(source: str) -> Subject:
    """Return the network of a checkpoint, a published file, a folder of `topodet pretrain`, or of timm.

    Args:
        source: a file in any form of `topodet.weights.fetch`, path of a run, or a name for `timm.create_model`, with
            initial weights.

    Raises:
        WeightsError: a file that is missing, damaged or unsafe, or has no wiring; a run without a checkpoint.
        ConfigError: an unknown name, or a network without wiring.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return _of_run(source, path)
    if path.is_file() or _LOOKS_LIKE_A_FILE.search(source):
        return _of_file(source, weights.read_trained(source))
    return _of_name(source)


def _of_name(name: str) -> Subject:
    try:
        check_timm_name(name)
    except ConfigError as error:
        raise ConfigError(f"{name!r} is not a file or folder here, and as a network: {error}") from None
    model = timm.create_model(name)
    if not wirings(model):
        raise ConfigError(
            f"{name} has no wiring: its connections are not edges with weights. Networks with a wiring are toponet*, "
            "resnet*_cifar_connected, and the results of topodet.models.connect and rewire"
        )
    return Subject(name, "timm network with initial weights", name, model, _input_size(model.default_cfg, model))


def _of_file(source: str, file: WeightsFile) -> Subject:
    if not _wired(file.state_dict):
        raise WeightsError(
            f"{file.path} has no topology: none of its {len(file.state_dict)} tensors are the edges and alpha of a "
            "wiring. Give a file of a toponet, or of a network that was trained with --connect or --rewire"
        )
    about = {"file": str(file.path)}
    args = file.checkpoint.get("args")
    if isinstance(args, dict) and isinstance(args.get("model"), str) and "num_classes" in file.checkpoint:
        model = _trained(file, args)
        about |= {
            "epoch": file.checkpoint.get("epoch"),
            "weights": "averaged (EMA)" if "state_dict_ema" in file.checkpoint["held"] else "last",
            "sparsity": args.get("sparsity"),
        }
        data = file.checkpoint.get("data_config")
        return Subject(source, "checkpoint", args["model"], model, _input_size(data, model), about)
    backbone = weights.extract_backbone(file.state_dict) or file.state_dict
    card = weights.backbone_card(file.card)
    whole = any(name not in backbone for name in file.state_dict)
    # The card's epoch and weights are not valid for a detector's backbone: they describe its initial weights.
    about |= {name: card.get(name) for name in ("name", *(() if whole else ("epoch", "weights")), "licence", "notes")}
    if "stages.0.wiring.edges" not in backbone and not card.get("wiring"):
        note = (
            f"{file.path} does not say which network its wirings belong to: no parameters, multiply-adds and NN-Mass. "
            "A checkpoint of `topodet pretrain` does; `topodet analyze-model` measures a detector from its config"
        )
        return Subject(source, "state dict", "", Wirings(file.state_dict), facts=about, notes=(note,))
    head = backbone.get("head.fc.weight")
    inner = WeightsFile(file.path, backbone, card, file.checkpoint)
    model = weights.build(inner, num_classes=0 if head is None else len(head), quiet=True)
    kind = "backbone of a detector" if whole else "published backbone" if card else "state dict"
    return Subject(source, kind, str(card.get("architecture") or "toponet"), model, _input_size(card, model), about)


def _of_run(source: str, folder: Path) -> Subject:
    """Return the network of a run's newest readable checkpoint, with the history of its edges."""
    paths = sorted(folder.glob("checkpoint-*.pth.tar"))
    paths += [path for path in (folder / _BEST, folder / LAST) if path.exists()]
    if not paths:
        if (folder / "args.yaml").exists():
            raise WeightsError(f"{folder} has no checkpoint: the run has not finished its first epoch")
        others = [path for path in folder.glob("*.pth") if path.is_file()]  # of a detector's training
        others.sort(key=lambda path: path.stat().st_mtime)
        remedy = f"one of its files, e.g. {others[-1]}" if others else "a file"
        raise WeightsError(f"{folder} is not a run of `topodet pretrain`: it has no checkpoint of one. Give {remedy}")
    files: dict[int, WeightsFile] = {}
    notes: list[str] = []
    damaged: list[str] = []
    for path in paths:  # of several files of one epoch, the last one is kept: last.pth.tar if it is among them
        try:
            file = weights.read(path)
        except WeightsError as error:
            damaged.append(str(error))
            continue
        epoch = file.checkpoint.get("epoch")
        if isinstance(epoch, int):
            files[epoch] = replace(file, checkpoint={k: v for k, v in file.checkpoint.items() if k != "optimizer"})
        else:
            damaged.append(f"{path} does not say after which epoch it was written")
    notes += [f"left out: {reason}" for reason in damaged]
    if not files:
        raise WeightsError(f"{folder}: none of its checkpoints can be read. {'; '.join(damaged)}")
    newest = _of_file(source, files[max(files)])
    if not (folder / LAST).exists():
        notes.append(f"there is no {LAST}: the newest checkpoint is used, of epoch {max(files)}")
    snapshots = []
    for epoch, file in sorted(files.items()):
        snapshot = _snapshot(epoch, newest.model, file.state_dict)
        if snapshot is None:
            notes.append(f"left out: {file.path} has different edges than the one of epoch {max(files)}")
        else:
            snapshots.append(snapshot)
    history, told = _history(folder / "summary.csv")
    if not history and isinstance(rows := files[max(files)].checkpoint.get("history"), list):
        history = tuple(
            {str(name): _number(value) for name, value in row.items()} for row in rows if isinstance(row, Mapping)
        )
    return replace(
        newest, kind="run", snapshots=tuple(snapshots), history=history, notes=(*newest.notes, *notes, *told)
    )


def _trained(file: WeightsFile, args: Mapping[str, Any]) -> nn.Module:
    """Return the network of a checkpoint of `topodet pretrain`, with its weights."""
    options = parse_over(args, [], str(file.path))
    weights.check_network(file.path, options.model.model, options.model.model_kwargs, file.state_dict)
    channels, classes = options.model.channels, file.checkpoint["num_classes"]
    if not isinstance(classes, int) or classes < 0:
        raise WeightsError(f"{file.path} is damaged: it was trained for {str(classes)[:40]} classes")
    weights.check_size(file, partial(build.create_network, options, classes, channels, file.state_dict))
    group = Group(rank=0, world_size=1, device=torch.device("cpu"))
    model = build.create_model(options, classes, channels, group, file.state_dict)
    weights.load(model, file, head=True, quiet=True)
    return model


def _wired(state_dict: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the wirings in a state dict, in its order."""
    names = [name.removesuffix(".edges") for name in state_dict if name.endswith(".edges")]
    return [name for name in names if f"{name}.alpha" in state_dict]


def _snapshot(epoch: int, model: nn.Module, state_dict: Mapping[str, Tensor]) -> Snapshot | None:
    alphas = {}
    for name, wiring in wirings(model).items():
        edges, alpha = state_dict.get(f"{name}.edges"), state_dict.get(f"{name}.alpha")
        if edges is None or alpha is None or not torch.equal(edges, wiring.edges):
            return None
        alphas[name] = tuple(alpha.double().tolist())
    return Snapshot(epoch, alphas)


def _history(path: Path) -> tuple[tuple[dict[str, float | None], ...], list[str]]:
    """Return the rows of a summary.csv up to the first invalid one, and notes about it."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            table = list(csv.DictReader(file))
    except FileNotFoundError:
        return (), [f"there is no {path.name}: the curves are from the newest checkpoint's history"]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        return (), [f"{path} cannot be read ({error}): the curves are from the newest checkpoint's history"]
    rows: list[dict[str, float | None]] = []
    for line, row in enumerate(table, start=2):
        numbers = {name: _number(value) for name, value in row.items() if name}
        if numbers.get("epoch") is None or None in row.values():
            return tuple(rows), [
                f"{path}, line {line}: not a complete row of numbers; it is left out, and so are later ones"
            ]
        rows.append(numbers)
    return tuple(rows), []


def _number(value: object) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _input_size(about: object, model: nn.Module) -> tuple[int, int, int]:
    """Return the size of the images from a card or configuration; 224 by default."""
    size = about.get("input_size") if isinstance(about, Mapping) else None
    if isinstance(size, list | tuple) and len(size) == 3 and all(isinstance(n, int) and 0 < n <= 4096 for n in size):
        return tuple(size)
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    return first.in_channels, 224, 224
