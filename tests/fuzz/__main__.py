"""Read thousands of changed files and count how that ends: `python -m tests.fuzz` (or `make fuzz`)."""

from __future__ import annotations

import argparse
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import repeat

from tqdm import tqdm

from tests.fuzz.detectors import all_kinds
from tests.fuzz.harness import Findings, fuzz

SHARE = 260  # inputs that a process reads before it starts anew


def main() -> int:
    """Print the table and the first input of each wrong end; return 1 if there is any."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=15_000, help="how many")
    parser.add_argument("--first", type=int, default=0, help="number of the first one, to read it again")
    parser.add_argument("--seed", type=int, default=0, help="of all of them")
    parser.add_argument("--kinds", default="", metavar="WORD", help="only those with this word in their name")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="that read at a time")
    args = parser.parse_args()
    began = time.monotonic()
    end = args.first + args.inputs
    shares = [range(first, min(first + SHARE, end)) for first in range(args.first, end, SHARE)]
    findings = Findings()
    with ProcessPoolExecutor(args.processes) as pool:
        results = pool.map(fuzz, shares, repeat(args.seed), repeat(partial(all_kinds, word=args.kinds)))
        for found in tqdm(results, total=len(shares), unit="share"):
            findings.merge(found)
    for text in findings.wrong.values():
        print(text, end="\n\n")
    print(findings.table())
    print(f"\n{args.inputs:,} inputs of seed {args.seed} in {time.monotonic() - began:.0f} s")
    return int(findings.bad > 0)


if __name__ == "__main__":
    sys.exit(main())
