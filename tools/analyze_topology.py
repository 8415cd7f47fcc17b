#!/usr/bin/env python
"""Look at the wiring of a trained network: `topodet analyze`, for who works from a clone.

python tools/analyze_topology.py runs/pretrain/NAME --html report.html
python tools/analyze_topology.py published/NAME-1a2b3c4d.pth --against published/OTHER-1a2b3c4d.pth --json numbers.json
"""

from __future__ import annotations

import sys

from topodet import cli


def main(argv: list[str] | None = None) -> int:
    return cli.main(["analyze", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    sys.exit(main())
