"""The `topodet` command: finds the subcommand, runs it, and turns errors into an exit status in one place."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from topodet.commands import COMMANDS, load_command
from topodet.errors import did_you_mean, exit_status


def main(argv: Sequence[str] | None = None) -> int:
    """Run `topodet` with the given arguments (default: those of the process) and return the exit status.

    The status is 0 for success, 1 for an error or for problems found, 130 after Ctrl-C.

    Raises:
        SystemExit: with status 2 on wrong usage, with 0 after `--help`.
    """
    name, *words = list(sys.argv[1:] if argv is None else argv) or [""]
    if name not in COMMANDS:
        parser = _overview()
        if name and not name.startswith("-"):
            parser.error(f"unknown command {name!r}.{did_you_mean(name, COMMANDS)} Known: {', '.join(COMMANDS)}")
        parser.parse_args([name] if name else [])
    return exit_status(load_command(name).main, words)


def _overview() -> argparse.ArgumentParser:
    """Return the parser of `topodet --help`, which lists the subcommands."""
    parser = argparse.ArgumentParser(prog="topodet", description="Tools for networks whose wiring is learned.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, title="commands", prog="topodet")
    for name in COMMANDS:
        commands.add_parser(name, help=(load_command(name).__doc__ or "").splitlines()[0])
    return parser


if __name__ == "__main__":
    sys.exit(main())
