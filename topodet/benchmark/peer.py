"""A module of the user's own as a contestant: `--module PATH.py:FUNCTION`."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from torch import nn

from ..errors import ConfigError, unknown_name


def build_peer(spec: str, arguments: dict[str, Any]) -> nn.Module:
    """Import a file and return what its function makes.

    Args:
        spec: "PATH.py:FUNCTION".
        arguments: keywords that the function is called with, see docs/performance.md.

    Raises:
        ConfigError: no such file or function, an error in either, or a result that is not a module.
    """
    path, separator, name = spec.rpartition(":")
    if not separator or not name:
        raise ConfigError(f"--module {spec}: give PATH.py:FUNCTION, e.g. peer.py:make")
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"--module {spec}: no file at {path} (working folder {Path.cwd()})")
    loaded = importlib.util.spec_from_file_location(f"topodet_peer_{file.stem}", file)
    if loaded is None:
        raise ConfigError(f"--module {spec}: {path} is not a Python file; its name must end in .py")
    namespace = importlib.util.module_from_spec(loaded)
    try:
        loaded.loader.exec_module(namespace)
    except Exception as error:  # the user's file can raise anything
        raise ConfigError(f"--module {spec}: importing {path} failed: {type(error).__name__}: {error}") from error
    functions = [key for key, value in vars(namespace).items() if callable(value)]
    if name not in functions:
        raise ConfigError(f"--module {spec}: " + unknown_name(f"function of {path}", name, functions))
    try:
        made = getattr(namespace, name)(**arguments)
    except Exception as error:
        called = ", ".join(f"{key}={_short(value)}" for key, value in arguments.items())
        raise ConfigError(
            f"--module {spec}: {name}({called}) failed: {type(error).__name__}: {error}. A function that does not need "
            "all of these can accept the others as **kwargs"
        ) from error
    if not isinstance(made, nn.Module):
        raise ConfigError(f"--module {spec}: {name} returned {type(made).__name__}, but must return a torch.nn.Module")
    return made


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else f"{text[:56]}...)"
