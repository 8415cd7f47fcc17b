"""The weights file: read and verify it.

A published backbone is three files of one stem, `NAME-<first 8 digits of the .pth's SHA-256>`:

- `.pth`: a dict of tensors and plain types that loads with `weights_only=True`. The tensors are under `model` (where
  Detectron2 looks, with `matching_heuristics` and `__author__`) and `state_dict` (where MMDetection and timm look),
  without the classifier; the card is under `card`.
- `.safetensors`: the same tensors; the card and the digests of both in its metadata.
- `.json`: only the card, with its digest and the hashes of both files.

Each has digests of its tensors and its card; checkpoints of `topodet.pretrain` have digests of everything. Files of
earlier versions have none, and are still accepted.

A published detector is only the `.pth`. Its card has `kind: detector`, the framework, the framework's config as text
and the class names, so a prediction needs only an image and this file.

Files are not trusted: nothing that could run code is unpickled, and every file is checked for damage, for non-finite
values, and against the network it is loaded into.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from ..errors import WeightsError
from ..files import sha256
from ..parse import parse_json
from .card import card_of, check_card, plain
from .digest import check_digests, digest
from .location import NAME_HASH, fetch
from .safe_load import check_extent, load_torch, refuse_other_kinds

# A tensor that only TopoNets have.
STEM = "stem.conv.weight"
_KEYS = ("state_dict_ema", "state_dict", "model")
# Prefixes that DDP, torch.compile and Lightning add to the names of tensors.
_COMPILED = "_orig_mod."
_WRAPPERS = ("module.", _COMPILED, "model.")
_DTYPES = frozenset(
    [
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
    ]
)
# Entries of a training checkpoint besides its tensors; those of another type are left out.
_OF_TRAINING = {"args": Mapping, "data_config": Mapping, "meta": Mapping, "history": list, "arch": str, "epoch": int}


# Entries of any checkpoint besides its tensors; those of another type are left out.
_ENTRIES = {
    **dict.fromkeys(("args", "data_config", "meta", "data"), Mapping),
    "arch": str,
    "history": list,
    **dict.fromkeys(("epoch", "num_classes", "iteration"), int),
}


@dataclass(frozen=True)
class WeightsFile:
    """The content of a weights file.

    Attributes:
        path: path of the file.
        state_dict: the tensors, on the CPU; the averaged (EMA) ones if a training checkpoint has both.
        card: description of the tensors (see `publish`); empty for a checkpoint without a card.
        checkpoint: the other content of a training checkpoint.
        prefix: prefix of a wrapper that was removed from all names (e.g. "module." of DDP); "" if there was none.
        objects: types of the objects that `read_trained` skipped.
    """

    path: Path
    state_dict: dict[str, Tensor]
    card: dict[str, Any]
    checkpoint: dict[str, Any] = field(default_factory=dict, repr=False)
    prefix: str = ""
    objects: frozenset[str] = frozenset()

    @property
    def images_card(self) -> dict[str, Any]:
        """The card or, for a training checkpoint, the image format from its options."""
        return self.card or card_of(self.checkpoint)


def read(source: str | os.PathLike, *, check_hash: bool = True) -> WeightsFile:
    """Read and verify a weights file: a published backbone, a training checkpoint or a bare state dict.

    Args:
        source: a .pth, .pth.tar or .safetensors, in any form of `fetch`.
        check_hash: compare the bytes with the hash in a published file's name, and the content with its digests.

    Raises:
        WeightsError: missing, truncated, a pickle that would run code, a mismatch with its hash or digest, no tensors,
            a value that is not finite, or one that is not a float or integer.
    """
    return _read(source, check_hash)


def read_trained(source: str | os.PathLike) -> WeightsFile:
    """Like `read`, but also accept checkpoints with other objects, such as MMEngine's log, which are skipped.

    Raises:
        WeightsError: as `read`.
    """
    return _read(source, True, skip_objects=True)


def read_checkpoint(source: str | os.PathLike) -> dict[str, Any]:
    """Return the whole content of a .pth file, with hash and digests checked; nothing that could run code is unpickled.

    Raises:
        WeightsError: missing, truncated, a pickle that would run code, or a mismatch with its hash or digest.
    """
    return _read_torch(_fetch_checked(source, True), True)[0]


def read_checkpoint_with_objects(source: str | os.PathLike) -> tuple[dict[str, Any], frozenset[str]]:
    """Return the result of `read_checkpoint`, and the types of the skipped objects.

    Raises:
        WeightsError: as `read_checkpoint`, except for objects.
    """
    return _read_torch(_fetch_checked(source, True), True, skip_objects=True)


def _read(source: str | os.PathLike, check_hash: bool, *, skip_objects: bool = False) -> WeightsFile:
    path = _fetch_checked(source, check_hash)
    objects: frozenset[str] = frozenset()
    if path.suffix.lower() == ".safetensors":
        state_dict, card = _read_safetensors(path, check_hash)
        rest: dict[str, Any] = {}
    else:
        content, objects = _read_torch(path, check_hash, skip_objects=skip_objects)
        state_dict, rest = _find_state_dict(path, content)
        card = rest.pop("card", None)
        card = {} if card is None else card
        # Checkpoints of other programs may use these keys for something else.
        rest = {key: value for key, value in rest.items() if isinstance(value, _ENTRIES.get(key, object))}
        rest |= {key: plain(rest[key]) for key in ("args", "data_config", "history") if key in rest}
    try:
        card = check_card(card)
        prefix, state_dict = without_wrappers(state_dict)
        _check_tensors(state_dict)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error
    return WeightsFile(path, state_dict, card, rest, prefix, objects)


def read_detector(source: str | os.PathLike | WeightsFile, framework: str = "") -> WeightsFile:
    """Read and verify a published detector.

    Args:
        source: in any form of `fetch`, or a result of `read`.
        framework: the expected framework; any if empty.

    Raises:
        WeightsError: as `read`; not a published detector, or one for another framework.
    """
    file = source if isinstance(source, WeightsFile) else read(source)
    card = file.card
    if card.get("kind") != "detector":
        known = card.get("architecture") or STEM in file.state_dict
        backbone = known and not of_detector(file.state_dict)
        what = "a backbone" if backbone else "a checkpoint without config and class names"
        raise WeightsError(
            f"{file.path} is {what}, not a published detector; create one from a checkpoint with "
            "topodet publish --detector CHECKPOINT --config CONFIG, or give --config to a tool that accepts it"
        )
    if framework and card.get("framework") != framework:
        raise WeightsError(f"{file.path} is a detector for {card.get('framework')!r}, not for {framework!r}")
    classes = card.get("classes")
    if not isinstance(card.get("config"), str) or not isinstance(classes, list) or not _all_text(classes):
        raise WeightsError(
            f"{file.path} is a damaged detector: its card has no config or no class names; fetch it again"
        )
    return file


def _fetch_checked(source: str | os.PathLike, check_hash: bool) -> Path:
    path = fetch(source)
    match = NAME_HASH.search(path.name)
    if check_hash and match:
        digest = sha256(path)
        if not digest.startswith(match[1]):
            raise WeightsError(
                f"{path} is damaged or was changed: its name says SHA-256 {match[1]}..., its bytes have "
                f"{digest[:8]}...; fetch it again, or rename it if you changed it yourself"
            )
    return path


def _read_torch(path: Path, check_hash: bool, *, skip_objects: bool = False) -> tuple[dict[str, Any], frozenset[str]]:
    """Return the content of a torch file, and the types of the skipped objects."""
    found = load_torch(path, skip_objects=skip_objects)
    if not isinstance(found.content, dict):
        raise WeightsError(f"{path} contains a {type(found.content).__name__}, expected a state dict or a checkpoint")
    if check_hash:
        try:
            check_digests(found.content)
        except WeightsError as error:
            raise WeightsError(f"{path}: {error}") from error
    return found.content, found.skipped


def _read_safetensors(path: Path, check_hash: bool) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with open(path, "rb") as file:
            refuse_other_kinds(path, file.read(256))
    except WeightsError as error:
        raise WeightsError(f"{path} is refused: {error}") from error
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}") from error
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            state_dict = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except Exception as error:  # from safetensors, from torch for an unknown dtype, or from the operating system
        raise WeightsError(
            f"{path} ({path.stat().st_size} bytes) is truncated or damaged ({error}); fetch it again"
        ) from error
    card = parse_json(metadata.get("card", "{}"), f"the card of {path}", WeightsError)
    check_extent([card, *state_dict])
    expected = metadata.get("tensors_sha256")
    if check_hash and expected and tensors_sha256(state_dict) != expected:
        raise WeightsError(
            f"{path} is damaged or was changed: its tensors do not match the hash it states; fetch it again"
        )
    expected = metadata.get("card_sha256")
    if check_hash and expected and digest(card) != expected:
        raise WeightsError(
            f"{path} is damaged or was changed: its card does not match the digest it states; fetch it again"
        )
    return state_dict, card


def _find_state_dict(path: Path, content: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of a checkpoint, and its other entries with the names of its state dicts under `held`."""
    held = [key for key in _KEYS if isinstance(content.get(key), Mapping)]
    state_dict = content[held[0]] if held else content
    if not state_dict or not all(isinstance(value, Tensor) for value in state_dict.values()):
        odd = next(
            (f"{key!r} is a {type(v).__name__}" for key, v in state_dict.items() if not isinstance(v, Tensor)), "empty"
        )
        raise WeightsError(
            f"{path} has no state dict ({odd}); expected tensors under one of {_KEYS}, or nothing but tensors"
        )
    rest = {key: value for key, value in content.items() if key not in _KEYS} if held else {}
    rest = {key: value for key, value in rest.items() if isinstance(value, _OF_TRAINING.get(key, object))}
    return dict(state_dict), {**rest, "held": held}


def without_wrappers(state_dict: Mapping[str, Tensor], own: Collection[str] = ()) -> tuple[str, dict[str, Tensor]]:
    """Remove what wrappers (DDP, torch.compile, ...) have added to the names of tensors.

    Args:
        state_dict: tensors of a file.
        own: names of the tensors of the target network; prefixes that these have too are kept.

    Returns:
        the removed text, "" if none, and the tensors by their remaining names.

    Raises:
        WeightsError: a name is not text.
    """
    for name in state_dict:
        if not isinstance(name, str):
            raise WeightsError(f"one of its tensors is named {str(name)[:80]}, which is not text")
    wrappers = [word for word in _WRAPPERS if not own or not all(name.startswith(word) for name in own)]
    found, taken = dict(state_dict), ""
    # torch's AveragedModel also saves the number of averaged models.
    if "module." in wrappers and all(name.startswith("module.") or name == "n_averaged" for name in found):
        found.pop("n_averaged", None)
    while found and (prefix := next((w for w in wrappers if all(name.startswith(w) for name in found)), "")):
        found = {name.removeprefix(prefix): tensor for name, tensor in found.items()}
        taken += prefix
    # A part was compiled, for example a stage.
    if any(_COMPILED in name for name in found) and not any(_COMPILED in name for name in own):
        found = {name.replace(_COMPILED, ""): tensor for name, tensor in found.items()}
        taken += _COMPILED
    return taken, found


def _check_tensors(state_dict: Mapping[str, Tensor]) -> None:
    for name, tensor in state_dict.items():
        if tensor.dtype not in _DTYPES or tensor.layout != torch.strided:
            raise WeightsError(f"{name} is {str(tensor.dtype).removeprefix('torch.')}: weights are floats or integers")
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            count = int((~torch.isfinite(tensor)).sum())
            raise WeightsError(
                f"{name} has {count} value(s) that are NaN or infinite; the training that wrote it diverged, "
                "use an earlier checkpoint"
            )


def tensors_sha256(state_dict: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of names, dtypes, shapes and bytes of tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(state_dict):
        tensor = state_dict[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def of_detector(names: Collection[str]) -> bool:
    """Whether these tensor names are of a whole detector, in either framework."""
    return any(name.startswith("backbone.") for name in names)


def _all_text(values: Sequence[Any]) -> bool:
    return all(isinstance(value, str) for value in values)
