"""Digests of topodet's files, which detect any change of a tensor or of the card, whatever the file's name.

A digest detects damage and mistakes. It is not a signature: anyone who changes a file on purpose can also write a new
digest.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import WeightsError

# The entry of a torch file that contains the digest of each other entry.
DIGESTS = "sha256"


def with_digests(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a torch file with the SHA-256 of each entry added."""
    rest = {key: value for key, value in content.items() if key != DIGESTS}
    return {**rest, DIGESTS: _digests(rest)}


def check_digests(content: Mapping[str, Any]) -> None:
    """Compare each entry of a torch file with its digest; files without digests, of earlier versions, are accepted.

    Raises:
        WeightsError: names the entry that differs or is missing.
    """
    stated = content.get(DIGESTS)
    if stated is None:
        return
    if not isinstance(stated, Mapping):
        raise WeightsError(f"its digests are a {type(stated).__name__}: it is damaged, fetch it again")
    ours = _digests({key: content[key] for key in stated if key in content})
    wrong = [str(key) for key in stated if ours.get(key) != stated[key]]
    if wrong:
        raise WeightsError(
            f"it is damaged or was changed: {', '.join(wrong[:3])} {'does' if len(wrong) == 1 else 'do'} not match "
            "the digest that the file states; fetch it again"
        )


def digest(value: Any) -> str:
    """Return the SHA-256 over a value of tensors and plain types, as 64 hexadecimal digits.

    Lists and tuples are equal, as in JSON; dicts keep their order.
    """
    return _digests({"": value})[""]


def _digests(content: Mapping[str, Any]) -> dict[str, str]:
    known: dict[int, bytes] = {}  # published files contain their tensors twice, under two names
    found = {}
    for key, value in content.items():
        sum_ = hashlib.sha256()
        _add(sum_, value, known)
        found[key] = sum_.hexdigest()
    return found


def _add(sum_: Any, value: Any, known: dict[int, bytes]) -> None:
    """Add a value to a digest, its type and length first, so that no two values add the same bytes."""
    if isinstance(value, Tensor):
        if id(value) not in known:
            known[id(value)] = _of_tensor(value)
        sum_.update(b"t" + known[id(value)])
    elif isinstance(value, Mapping):
        sum_.update(f"d{len(value)};".encode())
        for key, item in value.items():
            _add(sum_, key, known)
            _add(sum_, item, known)
    elif isinstance(value, list | tuple):
        sum_.update(f"l{len(value)};".encode())
        for item in value:
            _add(sum_, item, known)
    elif isinstance(value, set):
        _add(sum_, sorted(value, key=repr), known)
    elif isinstance(value, float):
        sum_.update(b"f" + struct.pack("<d", value))
    else:
        data = value if isinstance(value, bytes | bytearray) else str(value).encode("utf-8", "surrogatepass")
        sum_.update(f"{type(value).__name__}{len(data)};".encode() + data)


def _of_tensor(tensor: Tensor) -> bytes:
    tensor = tensor.detach().cpu().contiguous()
    sum_ = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)};".encode())
    sum_.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return sum_.digest()
