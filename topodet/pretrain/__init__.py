"""Pretraining of classification networks with timm, a penalty on the edges, and exact resume after interruptions."""

from collections.abc import Sequence

from topodet.errors import exit_status
from topodet.pretrain.command_line import parse

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line (None: that of the process); return its exit status, see `errors.exit_status`."""
    return exit_status(_main, argv)


def _main(argv: Sequence[str] | None) -> None:
    options = parse(argv)
    # Not before: help and errors of the command line do not wait for torch and timm.
    from topodet.pretrain.run import run

    run(options)
