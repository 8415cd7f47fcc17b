#!/usr/bin/env python
"""Generate the pages that are made from records/, and their pictures; --check only lists what is stale.

python tools/update_model_zoo.py
python tools/update_model_zoo.py docs/performance.md
"""

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure

from topodet.analysis import census, damage_curves
from topodet.benchmark import report
from topodet.errors import exit_status
from topodet.files import atomic_write
from topodet.records import runs, zoo
from topodet.records.markdown import replace_measured
from topodet.records.pictures import is_current, save_picture
from topodet.reproduce import claims, find_study, make_page

ROOT = Path(__file__).resolve().parents[1]

# The text of a page, and the pictures that it shows by their paths in the repository.
Page = tuple[str, dict[str, Figure]]


def main(argv: list[str] | None = None, root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="*", metavar="PAGE", help=f"some of {', '.join(PAGES)} (default: all)")
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 if a page is stale")
    args = parser.parse_args(argv)
    unknown = set(args.pages) - PAGES.keys()
    if unknown:
        parser.error(f"not a page of records: {', '.join(sorted(unknown))}. Known: {', '.join(PAGES)}")
    return exit_status(update, root, args.pages or list(PAGES), args.check)


def update(root: Path, names: list[str], check: bool) -> int:
    made = {name: PAGES[name](root) for name in names}
    if check:
        stale = [name for name, (text, _) in made.items() if not (root / name).exists() or _read(root, name) != text]
        pictures = {path: figure for _, shown in made.values() for path, figure in shown.items()}
        stale += [path for path, figure in pictures.items() if not is_current(figure, root / path)]
        print(
            f"stale: {', '.join(stale)}; run tools/update_model_zoo.py" if stale else f"{', '.join(names)}: up to date"
        )
        return int(bool(stale))
    for name, (text, pictures) in made.items():
        for path, figure in pictures.items():
            print(save_picture(figure, root / path))
        print(atomic_write(root / name, text))
    return 0


def model_zoo(root: Path) -> Page:
    recorded = runs.load_all(root / "records" / "runs")
    benchmarks = runs.load_all(root / "records" / "benchmarks")
    return zoo.model_zoo(_paper(root), recorded, coco_configs(root), benchmarks), zoo.pictures(recorded)


def zoo_commands(root: Path) -> Page:
    return zoo.commands(runs.load_all(root / "records" / "runs")), {}


def readme(root: Path) -> Page:
    measured = zoo.results(runs.load_all(root / "records" / "runs"))
    return replace_measured(_read(root, "README.md"), measured, path="README.md"), {}


def performance(root: Path) -> Page:
    found = runs.load_all(root / "records" / "benchmarks")
    text = report.update_page(_read(root, "docs/performance.md"), found)
    return text, {f"docs/{name}": figure for name, figure in report.pictures(found).items()}


def damage(root: Path) -> Page:
    found = runs.load_all(root / "records" / "damage")
    text = damage_curves.update_page(_read(root, "docs/topology_damage.md"), found)
    figures = (damage_curves.figures(record, found) for record in found)
    return text, {f"docs/{name}": figure for each in figures for name, figure in each.items()}


def census_of_timm(root: Path) -> Page:
    record = json.loads((root / "records" / "census.json").read_text())
    return census.update_page(_read(root, "docs/census.md"), record), {}


def connected(root: Path) -> Page:
    """Write what the studies of connected networks found."""
    parts = []
    for name in ("connected_cifar100", "connected_bccd"):
        found = find_study(name, root)
        parts += [f"[{found.title}](studies/{name}.md):", claims(found, root)]
    return replace_measured(_read(root, "docs/connect.md"), "\n\n".join(parts), path="docs/connect.md"), {}


def study(name: str, root: Path) -> Page:
    return make_page(find_study(name, root), root)


PAGES: dict[str, Callable[[Path], Page]] = {
    "README.md": readme,
    "model_zoo.md": model_zoo,
    "docs/zoo_commands.md": zoo_commands,
    "docs/performance.md": performance,
    "docs/topology_damage.md": damage,
    "docs/census.md": census_of_timm,
    "docs/connect.md": connected,
    **{
        f"docs/studies/{path.stem}.md": partial(study, path.stem)
        for path in sorted((ROOT / "configs" / "studies").glob("*.yaml"))
    },
}


def coco_configs(root: Path = ROOT) -> list[str]:
    """Return the paths of both frameworks' COCO configs."""
    patterns = ("mmdet/*_coco.py", "detectron2/*_[13]x.yaml", "detectron2/*_[13]x.py")
    found = [path for pattern in patterns for path in (root / "configs").glob(pattern)]
    return sorted(path.relative_to(root).as_posix() for path in found)


def _read(root: Path, page: str) -> str:
    return (root / page).read_text()


def _paper(root: Path) -> dict:
    return json.loads((root / "records" / "paper.json").read_text())


if __name__ == "__main__":
    sys.exit(main())
