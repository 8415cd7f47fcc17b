"""Measure time and memory of a TopoNet, compared with a chain of the same nodes, the plain loop, ResNet-50 and others.

    topodet benchmark --preset stage26 --json stage26.json
    topodet benchmark --preset toponet50_gpu --keep 0.2 --record toponet50_gpu
    topodet benchmark --preset stage26 --growth --module peer.py:make
    topodet benchmark --what detector --frameworks mmdetection --size 400

docs/performance.md says what is timed and what each contestant is. Options override the preset.
"""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from topodet.commands import make_parser
from topodet.frameworks import PACKAGES

GROWTH = (7, 14, 28, 56)


def parser() -> argparse.ArgumentParser:
    from topodet.benchmark.presets import DTYPES, PRESETS

    made = make_parser(__name__, __doc__)
    made.add_argument("--preset", default="", metavar="NAME", help=f"settings to start from: {', '.join(PRESETS)}")
    add = made.add_argument_group("what is measured").add_argument
    add("--what", help="stage (default), network or detector")
    add("--arch", help="network: name, see `topodet list`")
    add("--nodes", type=int, help="stage: number of nodes")
    add("--in-chs", type=int, metavar="C", help="stage: channels of the input")
    add("--out-chs", type=int, metavar="C", help="stage: channels of every node")
    add("--topology", help="stage: name of the graph, e.g. complete")
    add("--keep", type=float, metavar="SHARE", help="additional contestant: the model with this share of its edges")
    add("--growth", type=int, nargs="*", metavar="N", help=f"stage: repeat with N nodes (without N: {GROWTH})")
    add("--module", metavar="PATH.py:FUNCTION", help="additional contestant: the module that the function returns")
    add("--contestants", nargs="+", metavar="NAME", help="contestants to measure (default: all)")
    add("--frameworks", nargs="+", metavar="NAME", help=f"detector: {', '.join(PACKAGES)} (default: installed ones)")
    add("--seed", type=int, help="random seed")
    add = made.add_argument_group("how").add_argument
    add("--batch", type=int, help="images per step")
    add("--size", type=int, help="height and width in pixels; a detector's images are 4/3 as wide as high")
    add("--device", help="cpu or cuda")
    add("--dtype", help=f"{', '.join(DTYPES)}; all but float32 use autocast")
    add("--memory-format", metavar="FORMAT", help="contiguous or channels_last")
    add("--compile", action=argparse.BooleanOptionalAction, default=None, help="compile every contestant")
    add("--rounds", type=int, help="timed steps per contestant")
    add("--warmup", type=int, help="untimed steps per contestant before those")
    add("--threads", type=int, help="CPU threads of torch")
    add("--malloc", help="steady (default): the process keeps freed CPU memory; default: glibc's own behavior")
    add("--memory", action=argparse.BooleanOptionalAction, default=None, help="measure peak memory (default: yes)")
    add("--memory-runs", type=int, help="processes to take the median CPU peak of (default: 3)")
    add = made.add_argument_group("results").add_argument
    add("--json", type=Path, metavar="FILE", help="write the record to this file")
    add("--record", metavar="NAME", help="write the record to records/benchmarks/NAME.json of the working folder")
    return made


def main(words: Sequence[str]) -> None:
    args = parser().parse_args(words)
    from topodet.benchmark import report
    from topodet.benchmark.run import benchmark
    from topodet.benchmark.settings import Settings, make_settings
    from topodet.files import atomic_json
    from topodet.records import runs

    chosen = {field.name: getattr(args, field.name) for field in dataclasses.fields(Settings)}
    for name, value in chosen.items():
        if isinstance(value, list):
            chosen[name] = tuple(value) or GROWTH
    settings = make_settings(args.preset, **chosen)
    results = benchmark(settings, say=lambda text: print(text, file=sys.stderr, flush=True))
    name = args.record or (args.json.stem if args.json else args.preset or settings.what)
    record = runs.record_benchmark(results, name=name, command=f"topodet benchmark {shlex.join(words)}")
    print(f"{report.subject(record)}\n{report.circumstances(record)}\n\n{report.tables(record)}")
    if args.json:
        print(f"\n{atomic_json(args.json, record)}")
    if args.record:
        print(f"\n{runs.save_as(record, Path('records', 'benchmarks'))}")
