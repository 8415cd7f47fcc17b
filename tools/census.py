#!/usr/bin/env python
"""Connect every network of timm and compare it with the original, for records/census.json and docs/census.md.

    python tools/census.py                      # continue where the last one stopped
    python tools/census.py --minutes 30
    python tools/census.py resnet50 "hiera_*"   # these again
    python tools/update_model_zoo.py docs/census.md

The order of the networks makes those done at any time a broad sample: the smallest of each family come first. The
record is written after each network, and names every commit that networks were measured at. The largest networks need
16 GB of memory; lower --parameters leaves them out.
"""

import argparse
import fnmatch
import json
import sys
from pathlib import Path

import timm

from topodet.analysis import census
from topodet.errors import exit_status
from topodet.files import atomic_json
from topodet.records import runs

ROOT = Path(__file__).resolve().parents[1]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("names", nargs="*", help="names of networks, or patterns: measure these again")
    add("--minutes", type=float, default=60 * 24, help="start no further network after this time (default: a day)")
    add("--parameters", type=int, default=census.PARAMETERS, help="skip networks with more parameters")
    add("--seconds", type=float, default=census.SECONDS, help="end networks that need more CPU time")
    add("--record", type=Path, default=ROOT / "records" / "census.json", help="record to continue")
    return exit_status(take, parser.parse_args(argv))


def take(args: argparse.Namespace) -> None:
    registered = [name for name in timm.list_models() if census.family(name) in timm.list_modules()]
    registered = [name for name in registered if "topodet" not in timm.model_entrypoint(name).__module__]
    before = json.loads(args.record.read_text()) if args.record.exists() else {"networks": [], "commits": []}
    rows = {row["name"]: row for row in before["networks"]}
    names = census.in_order(registered)
    if args.names:
        names = [name for name in names if any(fnmatch.fnmatch(name, pattern) for pattern in args.names)]

    # Once, at the start: the code that measures is that of this commit, even if another one is checked out meanwhile.
    frame = runs.record_experiment(
        {"timm": timm.__version__, "registered": len(registered), "networks": []},
        name="census",
        command="python tools/census.py",
        kind="census",
    )
    frame["commits"] = list(dict.fromkeys([*before["commits"], frame.pop("commit")]))

    def keep(row: census.Row) -> None:
        rows[row["name"]] = row
        atomic_json(args.record, frame | {"networks": list(rows.values())})
        print(len(rows), {key: value for key, value in row.items() if key != "family"}, flush=True)

    done = {} if args.names else dict(rows)
    census.take(names, done, keep, minutes=args.minutes, parameters=args.parameters, seconds=args.seconds)


if __name__ == "__main__":
    sys.exit(main())
