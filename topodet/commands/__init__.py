"""The subcommands of `topodet`, one module each.

A module's docstring is its help: the first line is the summary in `topodet --help`. `parser()` returns its options,
`main(words)` runs it and returns the exit status (None is 0). A module imports torch and what needs it inside `main`,
so that `topodet --help` and wrong usage answer at once.
"""

from __future__ import annotations

import argparse
from importlib import import_module
from types import ModuleType

# Name on the command line -> module of this package.
COMMANDS = {
    "pretrain": "pretrain",
    "publish": "publish",
    "analyze": "analyze",
    "damage": "damage",
    "reproduce": "reproduce",
    "demo": "demo",
    "export": "export",
    "analyze-model": "analyze_model",
    "benchmark": "benchmark",
    "check-coco": "check_coco",
    "voc-to-coco": "voc_to_coco",
    "make-dataset": "make_dataset",
    "new-config": "new_config",
    "train-net": "train_net",
    "install-mmcv-ops": "install_mmcv_ops",
    "configs": "configs",
    "list": "list_models",
}


def load_command(name: str) -> ModuleType:
    """Import the module of a subcommand."""
    return import_module(f"{__name__}.{COMMANDS[name]}")


def make_parser(module: str, doc: str | None, **options: object) -> argparse.ArgumentParser:
    """Return an empty parser for the subcommand whose module has this `__name__` and `__doc__`.

    Args:
        module: `__name__` of the module.
        doc: its docstring, which becomes the description as it is.
        options: further arguments of `argparse.ArgumentParser`.
    """
    last = module.rpartition(".")[2]
    name = next(name for name, file in COMMANDS.items() if file == last)
    return argparse.ArgumentParser(
        prog=f"topodet {name}",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        **options,
    )
