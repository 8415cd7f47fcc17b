"""Read untrusted JSON and YAML as plain types, with limits; malformed text ends quickly in one error."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from .errors import DataError, TopodetError

MAX_JSON = 2**28  # bytes; the annotations of COCO, which `datasets.coco` reads, are larger
MAX_YAML = 2**19  # bytes
MAX_DIGITS = 100  # of an integer in YAML; Python reads longer hexadecimal ones, but cannot print them
MAX_VALUES = 100_000  # in YAML, with aliases expanded
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=@-]{0,127}")
# libyaml's parser if PyYAML has it: the same results, ten times as fast.
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def parse_json(text: str | bytes, what: str, error: type[TopodetError] = DataError) -> Any:
    """Return the content of JSON.

    Args:
        text: content of the file.
        what: description of the file, for the error.
        error: class of the error to raise.

    Raises:
        TopodetError: `error`, for text that is too long, not JSON or not Unicode, nested too deeply for Python, or with
            an integer of thousands of digits.
    """
    if len(text) > MAX_JSON:
        raise error(f"{what} has more than {MAX_JSON >> 20} MB of JSON")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as cause:
        raise error(f"{what} cannot be read as JSON: {_reason(cause)}") from cause


def read_json(path: str | os.PathLike, error: type[TopodetError] = DataError) -> Any:
    """Return the content of a JSON file, see `parse_json`.

    Raises:
        TopodetError: `error`, also for a missing file.
    """
    return parse_json(_read(path, MAX_JSON, error), str(path), error)


def parse_yaml(text: str | bytes, what: str, error: type[TopodetError] = DataError) -> Any:
    """Return the content of YAML as plain types; tags of Python objects are refused.

    Args:
        text: content of the file.
        what: description of the file, for the error.
        error: class of the error to raise.

    Raises:
        TopodetError: `error`, for text that is too long, not YAML, has tags of objects, or expands to more than
            `MAX_VALUES` by its aliases.
    """
    if len(text) > MAX_YAML:
        raise error(f"{what} has more than {MAX_YAML >> 10} KB of YAML")
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if _extent(node) > MAX_VALUES:
            raise error(f"{what} expands to more than {MAX_VALUES:,} values through its aliases (&, *)")
        if (length := _longest_integer(node)) > MAX_DIGITS:
            raise error(f"{what} has an integer of {length:,} digits; {MAX_DIGITS} are allowed")
        return loader.construct_document(node)
    except TopodetError:
        raise
    except yaml.constructor.ConstructorError as cause:
        raise error(
            f"{what} is refused: {cause.problem}. Only plain types are read: a tag like !!python/... could run code, "
            "nothing in it was executed"
        ) from cause
    except Exception as cause:  # PyYAML does not catch Python's errors for invalid dates, numbers and keys
        raise error(f"{what} cannot be read as YAML: {_reason(cause)}") from cause
    finally:
        if loader is not None:
            loader.dispose()


def read_yaml(path: str | os.PathLike, error: type[TopodetError] = DataError) -> Any:
    """Return the content of a YAML file, see `parse_yaml`.

    Raises:
        TopodetError: `error`, also for a missing file.
    """
    return parse_yaml(_read(path, MAX_YAML, error), str(path), error)


def check_file_name(name: Any, what: str, error: type[TopodetError]) -> str:
    """Return a name that is safe as a file name and is not a path.

    Raises:
        TopodetError: `error`, for other characters than letters, digits and ._+=@-, or for one that is too long.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise error(
            f"{what} {str(name)[:80]!r} cannot be a file name: use letters, digits and '._-+=@', at most "
            "128 characters, the first a letter or digit"
        )
    return name


def is_text(value: str) -> bool:
    """Return whether text can be encoded, unlike folder names that are not UTF-8, and contains no NUL."""
    return "\0" not in value and (value.isascii() or value == value.encode("utf-8", "ignore").decode())


def _read(path: str | os.PathLike, limit: int, error: type[TopodetError]) -> bytes:
    path = Path(path)
    try:
        if path.exists() and not path.is_file():
            raise error(f"cannot read {path}: it is a folder, a pipe or a device, not a file")
        if path.stat().st_size > limit:
            raise error(f"{path} has more than {limit >> 10} KB")
        return path.read_bytes()
    except FileNotFoundError as cause:
        raise error(f"no file at {path} (working folder {Path.cwd()}); check the path") from cause
    except OSError as cause:
        raise error(f"cannot read {path}: {cause.strerror or cause}") from cause


def _extent(root: yaml.Node) -> int:
    """Return the number of values of a graph of nodes with its aliases expanded."""
    sizes: dict[int, int] = {}
    # Each node is visited twice: to list its parts, and afterwards to add up their sizes.
    todo, opened = [(root, False)], set()
    while todo:
        node, inside = todo.pop()
        if inside:
            sizes[id(node)] = min(1 + sum(sizes[id(part)] for part in _parts(node)), MAX_VALUES + 1)
            opened.discard(id(node))
        elif id(node) not in sizes:
            if id(node) in opened:  # an alias within the node that it refers to
                return MAX_VALUES + 1
            opened.add(id(node))
            todo.append((node, True))
            todo += ((part, False) for part in _parts(node))
    return sizes[id(root)]


def _longest_integer(root: yaml.Node) -> int:
    """Return the digits of the longest integer of a graph of nodes."""
    longest, todo, seen = 0, [root], set()
    while todo:
        node = todo.pop()
        if isinstance(node, yaml.ScalarNode):
            longest = max(longest, len(node.value) if node.tag == "tag:yaml.org,2002:int" else 0)
        elif id(node) not in seen:
            seen.add(id(node))
            todo += _parts(node)
    return longest


def _parts(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield key
            yield value
    elif isinstance(node, yaml.SequenceNode):
        yield from node.value


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return " ".join(str(error).split())[:300] or type(error).__name__
