"""The errors that topodet raises for input it cannot use.

Each message names the value, its source and the fix. All derive from `TopodetError`, so a command line tool can print
them without a traceback.
"""

from __future__ import annotations

import difflib
import os
import reprlib
import select
import sys
from collections.abc import Callable, Iterable
from typing import Any


class TopodetError(Exception):
    """Base class of all errors about user input."""


class TopologyError(TopodetError, ValueError):
    """A graph that is not a valid wiring: a cycle, a self-loop, a duplicate edge, a node without input or output."""


class WeightsError(TopodetError, RuntimeError):
    """A weights file that is damaged, unsafe or made for another network."""


class DataError(TopodetError, ValueError):
    """A dataset that cannot be trained on as it is."""


class ConfigError(TopodetError, ValueError):
    """A setting that is unknown or contradicts another one."""


_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 2, 60, 60


def show(value: object) -> str:
    """Return the repr of a value, shortened: untrusted files may contain values of any length and depth."""
    return _SHORT.repr(value)


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """Return " Did you mean 'a' or 'b'?" with the names of `known` closest to an unknown one, or ""."""
    near = difflib.get_close_matches(str(name), known, n=3, cutoff=0.5)
    return f" Did you mean {' or '.join(repr(n) for n in near)}?" if near and name not in near else ""


def unknown_name(kind: str, name: object, known: Iterable[str]) -> str:
    """Return the sentence for a name that is not in `known`: the name, the closest names, and all of them."""
    known = sorted(known)
    return f"unknown {kind} {name!r}.{did_you_mean(name, known)} Known: {', '.join(known)}"


def exit_status(run: Callable[..., int | None], *args: Any) -> int:
    """Call `run` as a command line tool: return its status, or print the error about the input and return 1.

    No error message is printed if the reader of the output, such as `head`, closes the pipe. After Ctrl-C the status is
    130; the arguments of a KeyboardInterrupt, if any, say how to continue.

    Args:
        run: returns the exit status; None is 0.
        args: arguments of `run`.
    """
    try:
        status = run(*args) or 0
        print(end="", flush=True)
        return status
    except (TopodetError, OSError) as error:
        if isinstance(error, BrokenPipeError) and _reader_is_gone():
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), sys.stdout.fileno())  # Python flushes stdout again at exit
        else:
            print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        print("; ".join(["interrupted", *map(str, stop.args)]), file=sys.stderr)
        return 130


def _reader_is_gone() -> bool:
    """Return whether standard output is a pipe that its reader has closed."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
    except (AttributeError, OSError):  # Windows has no poll, and not every output has a descriptor
        return False
    return any(event & select.POLLERR for _, event in poll.poll(0))
