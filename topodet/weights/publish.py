"""Publish a training checkpoint; the published file is read again as a check."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from .. import __version__, connectivity
from ..errors import ConfigError, WeightsError
from ..files import atomic_json, atomic_write, sha256
from ..parse import check_file_name
from .card import OF_THE_BACKBONE, images, plain
from .digest import digest, with_digests
from .file import WeightsFile, read, read_detector, tensors_sha256
from .load import ignored_by, load
from .rebuild import build_network, network_design

FORMAT = 1


@dataclass(frozen=True)
class PublishedFiles:
    """Paths of a published backbone."""

    pth: Path
    safetensors: Path
    card: Path


def publish(
    checkpoint: str | os.PathLike,
    folder: str | os.PathLike,
    *,
    name: str | None = None,
    architecture: str | None = None,
    licence: str = "Apache-2.0",
    notes: str = "",
    prune: Mapping[str, Any] | None = None,
    head: bool = False,
) -> PublishedFiles:
    """Turn a training checkpoint into a published backbone, and verify it by loading it again.

    The averaged weights (EMA) are used if there are any; the classifier is left out unless `head` is set. Edge weights
    that were frozen in training (--freeze-alpha) are marked as fixed in the card.

    Args:
        checkpoint: a checkpoint of `topodet.pretrain`.
        folder: folder for the three files.
        name: stem before the hash; the architecture's name by default.
        architecture: name of the network; read from the checkpoint by default.
        licence: license of the weights, as SPDX identifier.
        notes: one line for the card, e.g. the data.
        prune: arguments of `connectivity.prune`, to publish the network without its weak edges. The card has these
            arguments, but not the metrics, which are those of the whole network.
        head: publish the classifier too. Detectors ignore it.

    Raises:
        WeightsError: as `read` and `load`; `head` is set, but the checkpoint has no number of classes.
        ConfigError: as `connectivity.prune`, or a name that is a path.
        OSError: the files could not be written; no partial files are left.
    """
    if name is not None:
        check_file_name(name, "the name to publish under", ConfigError)
    file = read(checkpoint)
    classes = (file.checkpoint.get("num_classes") or file.card.get("num_classes")) if head else 0
    if classes is None or not (classes == 0 or any(len(t) == classes for t in file.state_dict.values() if t.ndim)):
        raise WeightsError(f"{file.path} does not say how many classes its classifier has: publish it without")
    model = build_network(file, network_design(file, architecture), num_classes=classes)
    ignored = ignored_by(model, head)
    state_dict = {name: tensor.contiguous() for name, tensor in file.state_dict.items() if not ignored(name)}
    load(model, WeightsFile(file.path, state_dict, {}), head=head, quiet=True)
    if prune:
        model = connectivity.prune(model, **prune)
        state_dict = model.state_dict()
    design = network_design(replace(file, state_dict=state_dict), architecture)
    data = file.checkpoint.get("data_config") or file.card  # a file published before has it in its card
    graphs = {name: wiring.topology for name, wiring in connectivity.wirings(model).items()}
    card = {
        "format": FORMAT,
        "name": name or design["architecture"],
        **design,
        "wirings": list(graphs),
        "topology": [json.loads(topology.to_json()) for topology in graphs.values()],
        "parameters": sum(p.numel() for p in model.parameters()),
        "tensors": len(state_dict),
        **({"num_classes": classes} if head else {}),
        **images(data),
        "weights": file.card.get("weights")
        or ("ema" if "state_dict_ema" in file.checkpoint.get("held", ()) else "last"),
        "epoch": file.checkpoint.get("epoch", file.card.get("epoch")),
        "metrics": {} if prune else plain((file.checkpoint.get("history") or [file.card.get("metrics", {})])[-1]),
        "pruned": plain(prune or {}),
        "sparsity": connectivity.sparsity(model),
        "recipe": plain(file.checkpoint.get("args") or file.card.get("recipe") or {}),
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
    more: Mapping[str, Any] | None = None,
) -> Path:
    """Write a trained detector as `NAME-<hash>.pth`, without its training state, and read it again as a check.

    Args:
        file: the checkpoint, whose tensors must already be known to fill the model of `config`.
        folder: folder for the file.
        name: stem before the hash.
        framework: framework of `config`, e.g. "detectron2".
        config: config of the detector, as text.
        classes: names, by index.
        licence: license of the weights, as SPDX identifier.
        notes: one line for the card, e.g. the data.
        more: additional entries of the file, for the framework's own tools.

    Returns:
        the path of the file.

    Raises:
        ConfigError: a name that is a path.
        WeightsError: the file differs when it is read again.
        OSError: it could not be written; no partial files are left.
    """
    check_file_name(name, "the name to publish under", ConfigError)
    state_dict = {key: tensor.contiguous() for key, tensor in file.state_dict.items()}
    card = {
        "format": FORMAT,
        "kind": "detector",
        "name": name,
        "framework": framework,
        "config": config,
        "classes": list(classes),
        # The format of the images, which the detector must keep for its backbone.
        **{key: file.card.get(key) for key in OF_THE_BACKBONE},
        "backbone": file.card.get("name"),
        "tensors": len(state_dict),
        "iteration": plain(file.checkpoint.get("iteration")),
        "licence": licence,
        "notes": notes,
        "source_sha256": sha256(file.path),
        "topodet": __version__,
    }
    # No `matching_heuristics`, so that Detectron2 uses the names of a detector's tensors as they are.
    content = {"model": state_dict, "__author__": "topodet", "card": card, **(more or {})}
    path = atomic_write(*_hashed(content, Path(folder), name))
    try:
        back = read_detector(path, framework)
        if back.card != card or tensors_sha256(back.state_dict) != tensors_sha256(state_dict):
            raise WeightsError(f"{path} does not read back as it was written; publish again")
    except BaseException:
        path.unlink()
        raise
    return path


def _write(folder: Path, state_dict: dict[str, Tensor], card: dict[str, Any]) -> PublishedFiles:
    content = {
        "model": state_dict,
        "state_dict": state_dict,
        "matching_heuristics": True,
        "__author__": "topodet",
        "card": card,
    }
    pth, packed = _hashed(content, folder, card["name"])
    metadata = {
        "format": "pt",
        "card": json.dumps(card),
        "tensors_sha256": tensors_sha256(state_dict),
        "card_sha256": digest(card),
    }
    files = PublishedFiles(pth, pth.with_suffix(".safetensors"), pth.with_suffix(".json"))
    with contextlib.ExitStack() as undo:  # all three files or none
        for path in (files.pth, files.safetensors, files.card):
            if not path.exists():
                undo.callback(path.unlink, missing_ok=True)
        atomic_write(files.pth, packed)
        atomic_write(files.safetensors, safetensors_bytes(state_dict, metadata))
        hashes = {path.name: sha256(path) for path in (files.pth, files.safetensors)}
        atomic_json(files.card, {**card, "card_sha256": digest(card), "sha256": hashes})
        for path in (files.pth, files.safetensors):
            back = read(path)
            if back.card != card or tensors_sha256(back.state_dict) != metadata["tensors_sha256"]:
                raise WeightsError(f"{path} does not read back as it was written; publish again")
        undo.pop_all()
    return files


def _hashed(content: dict[str, Any], folder: Path, name: str) -> tuple[Path, bytes]:
    """Return the path NAME-<hash>.pth of a content, and the bytes of that file."""
    check_file_name(name, "the name, which is the architecture's,", WeightsError)
    # Into memory first: the hash is part of the name, and the archive must not contain a temporary name.
    buffer = io.BytesIO()
    torch.save(with_digests(content), buffer)
    hash_ = hashlib.sha256(buffer.getvalue()).hexdigest()
    return folder / f"{name}-{hash_[:8]}.pth", buffer.getvalue()
