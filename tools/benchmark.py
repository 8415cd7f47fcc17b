#!/usr/bin/env python
"""Time a TopoNet and measure its memory, beside a chain of the same nodes, the plain loop, ResNet-50 and others.

    python tools/benchmark.py --preset stage26 --json stage26.json
    python tools/benchmark.py --preset toponet50_gpu --keep 0.2 --record toponet50_gpu
    python tools/benchmark.py --preset stage26 --growth --module peer.py:make
    python tools/benchmark.py --what detector --frameworks mmdetection --size 400

docs/performance.md says what is timed and what each contestant is. Options override the preset.
"""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import sys
from pathlib import Path

# What draws and writes is imported where it is needed: the processes that measure memory import this file.
from topodet.benchmark import PRESETS, Settings, benchmark, make_settings
from topodet.benchmark.settings import DTYPES, FRAMEWORKS
from topodet.errors import exit_status
from topodet.files import atomic_json, atomic_path, atomic_write

ROOT = Path(__file__).resolve().parents[1]
GROWTH = (7, 14, 28, 56)


def main(argv: list[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else argv
    return exit_status(run, parser().parse_args(words), words)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--preset", default="", metavar="NAME", help=", ".join(PRESETS))
    add = made.add_argument_group("what is measured").add_argument
    add("--what", help="stage (default), network or detector")
    add("--arch", help="network: its name, see `topodet list`")
    add("--nodes", type=int, help="stage: number of nodes")
    add("--in-chs", type=int, metavar="C", help="stage: channels of the input")
    add("--out-chs", type=int, metavar="C", help="stage: channels of every node")
    add("--topology", help="stage: name of the graph, e.g. complete")
    add("--keep", type=float, metavar="SHARE", help="one more contestant: the model with this share of its edges")
    add("--growth", type=int, nargs="*", metavar="N", help=f"stage: repeat it with N nodes (alone: {GROWTH})")
    add("--module", metavar="PATH.py:FUNCTION", help="one more contestant: the module that the function returns")
    add("--contestants", nargs="+", metavar="NAME", help="only these (default: all)")
    add("--frameworks", nargs="+", metavar="NAME", help=f"detector: {', '.join(FRAMEWORKS)} (default: the installed)")
    add("--seed", type=int)
    add = made.add_argument_group("how").add_argument
    add("--batch", type=int, help="images a step")
    add("--size", type=int, help="height and width in pixels; a detector's images are 4/3 as wide as high")
    add("--device", help="cpu or cuda")
    add("--dtype", help=f"{', '.join(DTYPES)}; other than float32 by autocast")
    add("--memory-format", metavar="FORMAT", help="contiguous or channels_last")
    add("--compile", action=argparse.BooleanOptionalAction, default=None, help="torch.compile for every contestant")
    add("--rounds", type=int, help="timed steps of each contestant")
    add("--warmup", type=int, help="steps of each before that")
    add("--threads", type=int, help="of torch")
    add("--malloc", help="steady: the CPU's freed memory stays with the process (default); default: as glibc does it")
    add("--memory", action=argparse.BooleanOptionalAction, default=None, help="measure peak memory (default: yes)")
    add("--memory-runs", type=int, help="number of processes whose median the peak is, on a CPU (default: 3)")
    add = made.add_argument_group("results").add_argument
    add("--json", type=Path, metavar="FILE", help="write the record there")
    add("--record", metavar="NAME", help="write the record to records/benchmarks/NAME.json")
    add("--update-docs", action="store_true", help="make the tables of docs/performance.md from the records; no timing")
    add("--check-docs", action="store_true", help="write nothing; exit status 1 if docs/performance.md is stale")
    return made


def run(args: argparse.Namespace, words: list[str]) -> int:
    from topodet.benchmark import report
    from topodet.records import runs

    if args.update_docs or args.check_docs:
        return docs(check=args.check_docs)
    chosen = {field.name: getattr(args, field.name) for field in dataclasses.fields(Settings)}
    for name, value in chosen.items():
        if isinstance(value, list):
            chosen[name] = tuple(value) or GROWTH
    settings = make_settings(args.preset, **chosen)
    results = benchmark(settings, say=lambda text: print(text, file=sys.stderr, flush=True))
    name = args.record or (args.json.stem if args.json else args.preset or settings.what)
    record = runs.record_benchmark(results, name=name, command=f"python tools/benchmark.py {shlex.join(words)}")
    print(f"{report.subject(record)}\n{report.circumstances(record)}\n\n{report.tables(record)}")
    if args.json:
        print(f"\n{atomic_json(args.json, record)}")
    if args.record:
        print(f"\n{runs.save_as(record, ROOT / 'records' / 'benchmarks')}")
    return 0


def docs(*, check: bool, root: Path = ROOT) -> int:
    """Make the measured part of docs/performance.md and its pictures from the records, or tell whether it is stale."""
    from topodet.benchmark import report
    from topodet.records import runs

    found = runs.load_all(root / "records" / "benchmarks")
    page = root / "docs" / "performance.md"
    text = report.update_page(page.read_text(), found)
    pictures = {page.parent / name: figure for name, figure in report.pictures(found).items()}
    if check:
        stale = page.read_text() != text or not all(path.exists() for path in pictures)
        print("docs/performance.md is stale: run tools/benchmark.py --update-docs" if stale else "up to date")
        return int(stale)
    for path, figure in pictures.items():
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format="png", dpi=130)
        print(path)
    print(atomic_write(page, text))
    return 0


if __name__ == "__main__":
    sys.exit(main())
