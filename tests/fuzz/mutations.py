"""What becomes of a good file: bits, chunks, values and types that no program wrote. All drawn from one generator."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from typing import Any

import torch

# What JSON and YAML are to hold where Python's writers would not write it.
BIG, DEEP = "@big@", "@deep@"
NAMES = (
    "../../evil",
    "/abs/evil",
    "a/b",
    "a\0b",
    "\ud800",
    "a" * 5000,
    "",
    " ",
    "hf-hub:someone/net",
    "CON",
    "..",
    "é",
    "-x",
)
NUMBERS = (0, -1, 1, 2, 10**8, 3 * 10**7, 10**18, 2**63, -(2**63), 0.5, -0.0, 1e308, float("nan"), float("inf"))


class Payload:
    """An object that runs a command when it is unpickled: it makes the file `canary`."""

    canary = ""

    def __reduce__(self) -> tuple[Callable, tuple[str]]:
        return os.system, (f"touch '{self.canary}'",)


def bytes_of(rng: random.Random, data: bytes) -> bytes:
    """Return bytes with up to four changes: bits, cuts, chunks that are lost, moved, repeated, zeros or noise."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        size = len(changed)
        # Heads, tails and directories say what the rest is.
        at = rng.choice(
            (rng.randrange(size + 1), rng.randrange(min(size, 200) + 1), size - rng.randrange(min(size, 200) + 1))
        )
        length = rng.choice((1, 2, 4, 8, 64, 1000))
        kind = rng.randrange(8)
        if kind == 0 and at < size:
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del changed[at:]
        elif kind == 2:
            del changed[at : at + length]
        elif kind == 3:
            changed[at:at] = rng.randbytes(length)
        elif kind == 4:
            changed[at : at + length] = bytes(length)
        elif kind == 5:
            changed[at : at + length] = b"\xff" * length
        elif kind == 6:
            changed[at:at] = changed[at : at + length]
        else:
            source = rng.randrange(size + 1)
            changed[at : at + length] = changed[source : source + length]
    return bytes(changed)


def content_of(rng: random.Random, content: Any, values: Callable[[random.Random], Any]) -> Any:
    """Return nested dicts and lists with up to three entries changed; what is not changed is shared with the original.

    Args:
        rng: the generator.
        content: dicts, lists, and whatever is in them.
        values: draws what takes an entry's place.
    """
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        content = _changed(rng, content, values)
    return content


def _changed(rng: random.Random, value: Any, values: Callable[[random.Random], Any]) -> Any:
    if not isinstance(value, dict | list) or not value or rng.random() < 0.08:
        return values(rng)
    if isinstance(value, list):
        copy, place = list(value), rng.randrange(len(value))
        kind = rng.randrange(10)
        if kind == 0:
            del copy[place]
        elif kind == 1:
            copy.insert(place, values(rng))
        elif kind == 2:
            copy.append(copy[place])
        else:
            copy[place] = _changed(rng, copy[place], values)
        return copy
    copy, key = dict(value), rng.choice(list(value))
    kind = rng.randrange(12)
    if kind == 0:
        del copy[key]
    elif kind == 1:
        copy[rng.choice((*NAMES, str(key).upper(), 3, None))] = copy.pop(key)
    elif kind == 2:
        copy[key] = copy[rng.choice(list(copy))]
    elif kind == 3:
        copy[rng.choice(NAMES)] = values(rng)
    else:
        copy[key] = _changed(rng, copy[key], values)
    return copy


def plain_value(rng: random.Random) -> Any:
    """Draw what JSON and YAML can hold, with words of this module's for what Python does not write."""
    return rng.choice(
        (
            *NUMBERS,
            *NAMES,
            None,
            True,
            False,
            [],
            {},
            [[]],
            {"a": {}},
            [1, "a", None],
            "1920",
            "no",
            "NaN",
            [0, 1] * 500,
            BIG,
            DEEP,
            "x" * 200_000,
        )
    )


def small_value(rng: random.Random) -> Any:
    """Draw what a config could say by mistake or on purpose: numbers that are odd or large, names, other types."""
    return rng.choice(
        (
            *(*NUMBERS, 3, 100, 10_000, 100_000, 4.5),
            *("TopoNet", "os.system", "builtins.print", "SGD", "a" * 500, "", "../x", "http://127.0.0.1:9/x.pth"),
            *(None, True, False, [], {}, [[]], [1, "a", None], [1] * 3000, [10**4] * 40, {"type": "TopoNet"}),
            *({"type": "Pretrained", "checkpoint": "/etc/passwd"}, {"type": "os.system"}, {"NAME": "x", 3: 4}),
        )
    )


def json_text(rng: random.Random, content: Any) -> bytes:
    """Return JSON of a content that `content_of` made of `plain_value`s."""
    text = json.dumps(content)
    depth = rng.choice((60, 1000, 100_000))
    return text.replace(f'"{BIG}"', "9" * 5000).replace(f'"{DEEP}"', "[" * depth + "]" * depth).encode()


def yaml_text(rng: random.Random, content: Any) -> bytes:
    """Return YAML of such a content: JSON, which it is, or with tags, anchors and aliases."""
    text = json_text(rng, content).decode()
    if rng.random() < 0.3 and isinstance(content, dict):
        lines = [f"{json.dumps(str(key))}: {json.dumps(value)}" for key, value in content.items()]
        place = rng.randrange(len(lines) + 1)
        lines.insert(
            place,
            rng.choice(
                (
                    f"x: !!python/object/apply:os.system [\"touch '{Payload.canary}'\"]",
                    f"model: !!python/object/new:os.system [\"touch '{Payload.canary}'\"]",
                    "seed: !!python/name:os.system",
                    "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]\n"
                    + "\n".join(f"{n}: &{n} [{', '.join(['*' + p] * 9)}]" for p, n in zip("abcdefgh", "bcdefghi")),
                    "a: &a [*a]",
                    "<<: {<<: *b}",
                    "seed: 2001-13-45",
                    "? [1, 2]\n: 3",
                    "seed: 0x" + "f" * 5000,
                    "\tseed: 1",
                    "seed: !!binary x",
                    "seed: !!int x",
                    "---\n---",
                )
            ),
        )
        text = "\n".join(lines)
    return text.encode("utf-8", "surrogatepass")


def xml_text(rng: random.Random, content: Any) -> bytes:
    """Return XML of such a content, a tag an entry, sometimes with a declaration that a parser could follow."""
    text = elements({"annotation": content})
    if rng.random() < 0.3:
        entities = "".join(f'<!ENTITY {n} "{f"&{p};" * 10}">' for p, n in zip("abcdefgh", "bcdefghi"))
        declarations = (
            f'<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa">{entities}]>',
            '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]>',
            '<!DOCTYPE x SYSTEM "http://127.0.0.1:9/x.dtd">',
            '<?xml version="1.0" encoding="utf-7"?>',
            '<?xml version="1.0" encoding="no-such"?>',
            '<?xml version="9"?>',
        )
        text = rng.choice(declarations) + text.replace("cat", rng.choice(("&a;", "&i;", "&#0;", "&#xD800;", "cat")))
    return text.encode("utf-8", "surrogatepass")


def elements(content: Any) -> str:
    """Return XML in which a key is a tag and a list is a series of objects."""
    if isinstance(content, dict):
        return "".join(f"<{key}>{elements(value)}</{key}>" for key, value in content.items())
    if isinstance(content, list):
        return "".join(f"<object>{elements(value)}</object>" for value in content)
    if content == BIG:
        return "9" * 5000
    return "<object>" * 20_000 + "</object>" * 20_000 if content == DEEP else str(content)


def torch_value(rng: random.Random) -> Any:
    """Draw what a torch file can hold and should not."""
    lists: list[Any] = [0] * 10
    for _ in range(9):
        lists = [lists] * 10  # 10**10 values in a few hundred bytes
    deep: list[Any] = []
    for _ in range(rng.choice((60, 400))):
        deep = [deep]
    choices: tuple[Callable[[], Any], ...] = (
        lambda: plain_value(rng),
        lambda: plain_value(rng),
        Payload,
        lambda: [Payload()],
        lambda: lists,
        lambda: deep,
        lambda: torch.zeros(1).expand(10**10),
        lambda: torch.zeros(1).expand(10**6, 10**6),
        lambda: torch.zeros(2, 2).to_sparse(),
        lambda: torch.eye(3).to_sparse_csr(),
        lambda: torch.zeros(3, device="meta"),
        lambda: torch.zeros(4).to(torch.float8_e4m3fn),
        lambda: torch.quantize_per_tensor(torch.zeros(4), 0.1, 0, torch.qint8),
        lambda: torch.zeros(3, dtype=torch.complex64),
        lambda: torch.zeros(3, dtype=torch.int32),
        lambda: torch.zeros(3, dtype=torch.bool),
        lambda: torch.full((4,), float("nan")),
        lambda: torch.tensor([[0, 10**8]]),
        lambda: torch.tensor([[0, 2**62]]),
        lambda: torch.tensor([[-1, 1]]),
        lambda: torch.tensor([[1, 0], [0, 1]]),
        lambda: torch.empty(0),
        lambda: torch.empty(0, 2, dtype=torch.int64),
        lambda: torch.tensor(3.0),
        lambda: torch.arange(12.0).reshape(3, 4).t(),
        lambda: torch.nn.Parameter(torch.zeros(2)),
        lambda: torch.Size([3]),
        lambda: torch.float32,
        lambda: torch.device("cpu"),
        lambda: 10**400,
        lambda: 1j,
        lambda: b"bytes",
        lambda: {1, 2},
        lambda: (1, (2,)),
        lambda: bytearray(3),
    )
    return rng.choice(choices)()


def tensor_of(rng: random.Random, tensor: torch.Tensor) -> Any:
    """Return a tensor of another dtype, shape, layout or with other values."""
    choices: tuple[Callable[[], Any], ...] = (
        lambda: tensor.to(rng.choice((torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.complex64))),
        lambda: tensor.reshape(-1)[:0],
        lambda: tensor.reshape(-1),
        lambda: tensor[None],
        lambda: torch.cat([tensor.reshape(-1)] * 2),
        lambda: tensor.double() * float("nan"),
        lambda: tensor.flip(0) if tensor.ndim else tensor,
        lambda: tensor * -1 if tensor.dtype != torch.bool else ~tensor,
        lambda: tensor + rng.choice((1, 10**8)),
        lambda: torch_value(rng),
    )
    return rng.choice(choices)()
