#!/usr/bin/env python
"""Generate model_zoo.md from records/; with --check only tell whether it is up to date."""

import argparse
import json
import sys
from pathlib import Path

from topodet import records
from topodet.files import atomic_write

ROOT = Path(__file__).resolve().parents[1]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 if model_zoo.md is stale")
    args = parser.parse_args(argv)
    text = records.model_zoo(
        json.loads((ROOT / "records" / "paper.json").read_text()),
        records.load_all(ROOT / "records" / "runs"),
        sorted(str(path.relative_to(ROOT)) for path in (ROOT / "configs" / "mmdet").glob("*_coco.py")),
    )
    zoo = ROOT / "model_zoo.md"
    if args.check:
        stale = not zoo.exists() or zoo.read_text() != text
        print("model_zoo.md is stale: run tools/update_model_zoo.py" if stale else "model_zoo.md is up to date")
        return int(stale)
    print(atomic_write(zoo, text))
    return 0


if __name__ == "__main__":
    sys.exit(main())
