"""A subcommand of `topodet`, called as the command line calls it."""

from topodet import cli


def run_command(name, words):
    """Return the exit status of `topodet NAME WORDS`."""
    return cli.main([name, *map(str, words)])
