"""The actions of `topodet reproduce`: print commands, show status, run, and make the page."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from matplotlib.figure import Figure

from ..errors import ConfigError
from ..files import atomic_write
from ..parse import read_json
from ..records.pictures import save_picture
from ..records.runs import commit_of
from . import page, runner
from .jobs import Job, Machines, Places, jobs_of
from .record import load_records
from .study import FRAMEWORKS, Scale, Study, find_study

Action = Literal["run", "dry_run", "status", "page"]


def command(
    name: str,
    *,
    scale: str | None = None,
    seeds: int | None = None,
    framework: str | None = None,
    gpus: int | None = None,
    nodes: int = 1,
    rank: int = 0,
    address: str = "",
    python: Mapping[str, str] | None = None,
    budget: float | None = None,
    action: Action = "run",
    runs: Path = Path("runs/studies"),
    data: Path = Path("data"),
    repository: Path = Path(),
    execute: runner.Execute | None = None,
) -> int:
    """Run one action on a study; return 0, or 1 if something is left to do after running.

    Args:
        name: name of the study, or path of its file.
        scale: "small" or "paper"; None for the study's first.
        seeds: number of seeds; None for the study's.
        framework: framework of detectors; None for both.
        gpus, nodes, rank, address, python: see `Machines`; `gpus` None for the study's.
        budget: hours after which it stops.
        action: run what is missing, print its commands, show the status, or only make the page.
        runs, data: folders, see `Places`.
        repository: the checkout with configs, records and docs, the working folder of all commands.
        execute: runs a shell line; None for `runner.run_line`.

    Raises:
        ConfigError: an unknown study or scale, an invalid file, or invalid numbers.
    """
    study = find_study(name, repository)
    chosen = study.scale(scale or next(iter(study.scales)))
    count = chosen.seeds if seeds is None else seeds
    if count < 1 or (budget is not None and budget <= 0):
        raise ConfigError(f"--seeds {count} and --budget {budget}: seeds must be at least 1, hours above 0")
    machines = Machines(chosen.gpus if gpus is None else gpus, nodes, rank, address, python or {})
    places = Places(repository / runs, data, repository / "records" / "studies")
    frameworks = FRAMEWORKS if framework is None else (framework,)
    jobs = jobs_of(study, chosen, places, seeds=count, frameworks=frameworks)
    if action == "page":
        return _write_page(study, repository)
    if action == "dry_run":
        return _print(jobs, machines)
    if action == "status":
        print(status_text([runner.state_of(job) for job in jobs], machines))
        return 0
    if shutil.which("bash") is None:
        raise ConfigError("the commands of a study need bash, which is not on the PATH")
    done = runner.run_jobs(
        jobs,
        machines,
        commit=commit_of(repository),
        budget=budget,
        execute=execute or partial(runner.run_line, folder=repository),
    )
    if not rank:
        _write_page(study, repository)
    return 0 if done else 1


def status_text(states: Sequence[runner.State], machines: Machines) -> str:
    """Return the progress of each arm, seed by seed, and the hours left."""
    marks = {"done": "done", "running": "runs", "stopped": "stopped", "missing": "-"}
    arms: dict[str, dict[int, str]] = {}
    for state in states:
        text = marks[state.word] + (f" {state.share:.0%}" if 0 < state.share < 1 else "")
        arms.setdefault(f"{state.job.study.name}-{state.job.scale.name} {state.job.arm.name}", {})[state.job.seed] = (
            text
        )
    width = max(map(len, arms))
    lines = [
        f"{name:{width}}  " + "  ".join(f"seed {seed}: {text:12}" for seed, text in found.items()).rstrip()
        for name, found in arms.items()
    ]
    counts = {word: sum(state.word == word for state in states) for word in marks}
    told = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
    where = f"{machines.processes} GPU(s) per run" if machines.gpus else "a CPU"
    lines.append(f"{told}; about {runner.hours_left(states):.1f} hours left on {where}, one run after the other")
    return "\n".join(lines)


def found_of(study: Study, scale: Scale, places: Places) -> page.Found:
    """Return a scale with its records, including those of other studies whose runs it measures."""
    found: dict[tuple[str, int], Any] = {}
    for arm in scale.arms.values():
        job = Job(study, scale, arm, 0, places)
        source = job.other(arm.source) if arm.kind == "run" else job
        for (name, seed), record in load_records(source.record.parent).items():
            if name == source.arm.name:
                found[arm.name, seed] = record
    return page.Found(scale, found)


def _print(jobs: Sequence[Job], machines: Machines) -> int:
    missing = [(job, job.lines(machines)) for job in runner.missing_jobs(jobs)]
    for job, lines in missing:
        print(f"# {job.study.name}-{job.scale.name}: {job.name}", *lines, sep="\n")
    hours = sum(job.arm.hours for job, _ in missing)
    print(f"# {len(missing)} of {len(jobs)} runs are missing, about {hours:.0f} hours one after the other")
    return 0


def make_page(study: Study, repository: Path) -> tuple[str, dict[str, Figure]]:
    """Return the page of a study, and its pictures by their paths in the repository, from the records alone."""
    found, paper = _read(study, repository)
    pictures = {f"docs/studies/{name}": figure for each in found for name, figure in page.pictures(study, each).items()}
    return page.page(study, found, paper), pictures


def claims(study: Study, repository: Path) -> str:
    """Return the tables of a study's claims, one for each scale, for other pages."""
    found, paper = _read(study, repository)
    return "\n\n".join(page.verdicts(each, paper) for each in found)


def _read(study: Study, repository: Path) -> tuple[list[page.Found], dict]:
    """Return the scales of a study with their records, and the paper's numbers."""
    places = Places(records=repository / "records" / "studies")
    paper = read_json(repository / "records" / "paper.json")
    return [found_of(study, scale, places) for scale in study.scales.values()], paper


def _write_page(study: Study, repository: Path) -> int:
    text, pictures = make_page(study, repository)
    for name, figure in pictures.items():
        save_picture(figure, repository / name)
    print(atomic_write(repository / "docs" / "studies" / f"{study.name}.md", text))
    return 0
