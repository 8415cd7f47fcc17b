#!/usr/bin/env python
"""Generate model_zoo.md, its pictures and docs/experiments.md from records/; --check only tells what is stale."""

import argparse
import json
import sys
from pathlib import Path

from topodet.files import atomic_path, atomic_write
from topodet.records import pages, runs, zoo

ROOT = Path(__file__).resolve().parents[1]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 if a page is stale")
    args = parser.parse_args(argv)
    recorded = runs.load_all(ROOT / "records" / "runs")
    paper = json.loads((ROOT / "records" / "paper.json").read_text())
    benchmarks = runs.load_all(ROOT / "records" / "benchmarks")
    text = zoo.model_zoo(paper, recorded, coco_configs(), benchmarks)
    experiment = ROOT / "docs" / "experiments.md"
    texts = {
        ROOT / "model_zoo.md": text,
        experiment: pages.update_page(experiment.read_text(), paper["cifar100"], recorded),
    }
    pictures = zoo.pictures(recorded)
    if args.check:
        stale = [page.name for page, text in texts.items() if not page.exists() or page.read_text() != text]
        stale += [path for path in pictures if not (ROOT / path).exists()]
        print(f"stale: {', '.join(stale)}; run tools/update_model_zoo.py" if stale else "model_zoo.md is up to date")
        return int(bool(stale))
    for path, figure in pictures.items():
        with atomic_path(ROOT / path) as temporary:
            figure.savefig(temporary, format="png", dpi=130)
        print(ROOT / path)
    for page, text in texts.items():
        print(atomic_write(page, text))
    return 0


def coco_configs() -> list[str]:
    """Return the paths of both frameworks' COCO configs."""
    patterns = ("mmdet/*_coco.py", "detectron2/*_[13]x.yaml", "detectron2/*_[13]x.py")
    found = [path for pattern in patterns for path in (ROOT / "configs").glob(pattern)]
    return sorted(path.relative_to(ROOT).as_posix() for path in found)


if __name__ == "__main__":
    sys.exit(main())
