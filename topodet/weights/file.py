"""The weights file: fetch, read and verify it.

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
import json
import os
import pickle
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import safetensors
import torch
from torch import Tensor

from ..errors import WeightsError
from ..files import sha256
from .safe_load import CAN_SKIP, skip_unknown_globals

# A tensor that every TopoNet has, and no other network.
STEM = "stem.conv.weight"
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
        with skip_unknown_globals(path):
            return read(path)
    except WeightsError as error:
        if CAN_SKIP:
            raise
        raise WeightsError(f"{error}. MMEngine's need torch 2.6 or later, this is {torch.__version__}") from error


def read_checkpoint(source: str | os.PathLike) -> dict[str, Any]:
    """Return all that a .pth file holds, its hash checked and nothing unpickled that could run code.

    Raises:
        WeightsError: missing, truncated, a pickle that would run code, or other bytes than its name's hash says.
    """
    return _read_torch(_fetch_checked(source, check_hash=True))


def read_detector(source: str | os.PathLike | WeightsFile, framework: str = "") -> WeightsFile:
    """Read and verify a published detector.

    Args:
        source: path or URL, or what `read` returned.
        framework: that the caller speaks for; any when empty.

    Raises:
        WeightsError: what `read` raises; no published detector, or one for another framework.
    """
    file = source if isinstance(source, WeightsFile) else read(source)
    card = file.card
    if card.get("kind") != "detector":
        known = card.get("architecture") or STEM in file.state_dict
        backbone = known and not of_detector(file.state_dict)
        what = "a backbone" if backbone else "a checkpoint without config and class names"
        raise WeightsError(
            f"{file.path} is {what}, not a published detector; make one of a training's output with "
            "tools/publish_model.py --detector CHECKPOINT --config CONFIG, or give --config where a tool takes it"
        )
    if framework and card.get("framework") != framework:
        raise WeightsError(f"{file.path} is a detector for {card.get('framework')!r}, not for {framework!r}")
    classes = card.get("classes")
    if not isinstance(card.get("config"), str) or not isinstance(classes, list) or not _all_text(classes):
        raise WeightsError(
            f"{file.path} is no intact detector: its card has no config or no class names; fetch it again"
        )
    return file


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
    if check_hash and expected and tensors_sha256(state_dict) != expected:
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


def tensors_sha256(state_dict: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 over names, dtypes, shapes and bytes of tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(state_dict):
        tensor = state_dict[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def of_detector(names: Collection[str]) -> bool:
    """Whether tensors of these names are those of a whole detector, in either framework."""
    return any(name.startswith("backbone.") for name in names)


def _all_text(values: Sequence[Any]) -> bool:
    return all(isinstance(value, str) for value in values)
