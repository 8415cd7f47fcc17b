"""A study from its YAML file, checked before anything runs."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any

from ..errors import ConfigError, did_you_mean, unknown_name
from ..frameworks import PACKAGES
from ..parse import read_yaml
from .measures import MEASURES, UNITS

# Kinds of arms: the key of each kind, and the other keys that it allows.
KINDS: dict[str, tuple[str, ...]] = {
    "pretrain": ("options", "hours"),
    "mmdetection": ("options", "hours", "backbone"),
    "detectron2": ("options", "hours", "backbone"),
    "damage": ("options", "hours"),
    "tool": ("options", "hours"),
    "run": (),
}
FRAMEWORKS = tuple(PACKAGES)
# The experiments that a study may run, by name: a study's file cannot name other code.
TOOLS = {
    "nn_mass": "tools/nn_mass_experiment.py",
    "nnstd": "tools/sparse_topologies.py",
    "swnet": "tools/small_world_experiment.py",
}
_STUDY = ("title", "claim", "measure", "scales")
_SCALE = ("about", "data", "seeds", "hours", "gpus", "images", "options", "arms", "comparisons", "edges")
_NAME = re.compile(r"[a-z0-9]+(?:_[a-z0-9]+)*")


@dataclass(frozen=True)
class Arm:
    """One of the things that a study compares.

    Attributes:
        name: name in the study.
        kind: how it is made, a key of `KINDS`.
        source: with "pretrain" a recipe, with a framework a detector's config, with "damage" the arm that is damaged,
            with "tool" a key of `TOOLS`, with "run" the arm whose runs are measured, "ARM" or "STUDY/ARM".
        options: options of the command that makes it.
        measure: the number in its record that is compared; the study's by default.
        paper: the paper's number: a path into records/paper.json, such as "backbones/resnet50/top1".
        unit: description of the measure; numbers with the same unit share an axis.
        hours: estimated hours of one run, used until a run is recorded; the scale's by default.
        backbone: with a framework, the arm whose pretraining it starts from, "ARM" or "STUDY/ARM"; "" for none.
    """

    name: str
    kind: str
    source: str
    options: Any
    measure: str
    unit: str
    hours: float
    paper: str = ""
    backbone: str = ""


@dataclass(frozen=True)
class Comparison:
    """A claim that one arm is above another one, or above a number.

    Attributes:
        arm: the arm that is claimed to be above.
        than: the other arm, or a number.
        margin: the claim is arm - than > margin; a negative one says "costs at most".
        paper: the difference that the paper prints, a path into records/paper.json.
    """

    arm: str
    than: str | float
    margin: float = 0.0
    paper: str = ""

    @property
    def text(self) -> str:
        """The claim in words."""
        if self.margin:
            way = f"{-self.margin:g} below" if self.margin < 0 else f"{self.margin:g} above"
            return f"{self.arm} is {'at most' if self.margin < 0 else 'more than'} {way} {self.than}"
        return f"{self.arm} is above {self.than}"


@dataclass(frozen=True)
class Scale:
    """A study at the paper's size, or at a small one.

    Attributes:
        name: "paper" or "small".
        about: differences from the paper.
        data: description of the images.
        seeds: number of seeds, from 0.
        unit: description of the measure; numbers with the same unit share an axis.
        hours: estimated hours of one run, used until a run is recorded.
        gpus: GPUs of one run; 0 for a CPU.
        images: images per update of pretraining over all processes, which keeps the recipe on any number of GPUs; 0 for
            the recipe's. If the options have a smaller batch_size, a process accumulates several steps per update.
        arms, comparisons: arms by name, and comparisons in order.
        edges: the arms whose edge weights the page shows.
    """

    name: str
    about: str
    data: str
    seeds: int
    hours: float
    gpus: int
    images: int
    arms: dict[str, Arm]
    comparisons: tuple[Comparison, ...]
    edges: tuple[str, ...] = ()


@dataclass(frozen=True)
class Study:
    """The content of a file under configs/studies.

    Attributes:
        name: name of the file.
        folder: folder of the file, in which other studies are looked up.
        title, claim: one line, and the paper's claim in a sentence.
        scales: scales by name.
    """

    name: str
    folder: Path
    title: str
    claim: str
    scales: dict[str, Scale] = field(default_factory=dict)

    def scale(self, name: str) -> Scale:
        """Return a scale.

        Raises:
            ConfigError: the study has no such scale.
        """
        if name not in self.scales:
            raise ConfigError(f"study {self.name}: {unknown_name('scale', name, self.scales)}")
        return self.scales[name]

    def other(self, name: str) -> Study:
        """Return the study of another file in the same folder."""
        return self if name == self.name else load_study(self.folder / f"{name}.yaml")


def find_study(name: str, repository: Path) -> Study:
    """Return a study by its name in `repository`/configs/studies, or by the path of its file.

    Raises:
        ConfigError: an unknown study (the closest names are listed), or an invalid file.
    """
    folder = repository / "configs" / "studies"
    if name.endswith(".yaml"):
        return load_study(Path(name))
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    if not known:
        raise ConfigError(
            f"{folder} has no studies: run this in a checkout of topodet, or give the path of a study's .yaml"
        )
    if name not in known:
        raise ConfigError(unknown_name("study", name, known))
    return load_study(folder / f"{name}.yaml")


def load_study(path: Path) -> Study:
    """Read a study.

    Raises:
        ConfigError: names the file, the place in it and the problem.
    """
    top = _mapping(read_yaml(path, ConfigError), _STUDY, str(path))
    scales = _mapping(top.get("scales"), ("paper", "small"), f"{path}: scales")
    return Study(
        name=path.stem,
        folder=path.parent,
        title=_text(top, "title", str(path)),
        claim=_text(top, "claim", str(path)),
        scales={
            name: _scale(name, found, top.get("measure", ""), f"{path}: scales.{name}")
            for name, found in scales.items()
        },
    )


def paper_number(paper: Mapping[str, Any], path: str) -> float | None:
    """Return the number at a path in records/paper.json; None for "" and if the paper has none.

    Raises:
        ConfigError: a path that does not exist.
    """
    if not path:
        return None
    try:
        found = reduce(lambda place, key: place[key], path.split("/"), paper)
    except (KeyError, TypeError):
        raise ConfigError(f"records/paper.json has no {path!r}") from None
    if not isinstance(found, (int, float)):
        raise ConfigError(f"{path!r} in records/paper.json is not a number: {json.dumps(found)[:60]}")
    return float(found)


def _scale(name: str, content: Any, measure: str, place: str) -> Scale:
    found = _mapping(content, _SCALE, place)
    arms: dict[str, Arm] = {}
    twins: dict[str, list[str]] = {}  # the arms of each entry: two for an entry with both frameworks
    for arm_name, entry in _mapping(found.get("arms"), None, f"{place}.arms").items():
        if not _NAME.fullmatch(arm_name):
            raise ConfigError(
                f"{place}.arms: {arm_name!r} is not a valid name: use lower-case letters, digits and single _"
            )
        made = _arms(arm_name, entry, found, measure, f"{place}.arms.{arm_name}")
        twins[arm_name] = list(made)
        arms |= made
    comparisons = [
        each
        for k, entry in enumerate(found.get("comparisons") or [])
        for each in _comparisons(entry, twins, f"{place}.comparisons[{k}]")
    ]
    edges = found.get("edges") or []
    for each in edges:
        if each not in arms:
            raise ConfigError(f"{place}.edges: {unknown_name('arm', each, arms)}")
    numbers = {key: found.get(key, 0) for key in ("seeds", "hours", "gpus", "images")}
    for key, value in numbers.items():
        if not isinstance(value, (int, float)) or isinstance(value, bool) or value < 0:
            raise ConfigError(f"{place}.{key} must be a number of at least 0, not {value!r}")
    if numbers["seeds"] < 1:
        raise ConfigError(f"{place}.seeds must be at least 1, not {numbers['seeds']}")
    return Scale(
        name=name,
        about=str(found.get("about", "")).strip(),
        data=_text(found, "data", place),
        arms=arms,
        comparisons=tuple(comparisons),
        edges=tuple(edges),
        **{key: numbers[key] if key == "hours" else int(numbers[key]) for key in numbers},
    )


def _arms(name: str, content: Any, scale: Mapping[str, Any], measure: str, place: str) -> dict[str, Arm]:
    entry = _mapping(content, None, place)
    kinds = [kind for kind in KINDS if kind in entry]
    if not kinds or (len(kinds) > 1 and set(kinds) != set(FRAMEWORKS)):
        raise ConfigError(f"{place} must have one of {', '.join(KINDS)} (or both frameworks), but has {list(entry)}")
    allowed = [*kinds, "measure", "unit", "paper", *dict.fromkeys(key for kind in kinds for key in KINDS[kind])]
    _mapping(entry, allowed, place)
    if "tool" in entry and entry["tool"] not in TOOLS:
        raise ConfigError(f"{place}.tool: {unknown_name('experiment', entry['tool'], TOOLS)}")
    chosen = entry.get("measure", measure)
    if chosen not in MEASURES and "." not in chosen:
        raise ConfigError(
            f"{place}: {unknown_name('measure', chosen, MEASURES)}, or the dotted path of a number in the record"
        )
    made = {}
    for kind in kinds:
        options = entry.get("options") or {}
        if len(kinds) > 1:
            options = options.get(kind, {})
        if kind == "pretrain":
            options = _merged(scale.get("options") or {}, options)
        full = name if len(kinds) == 1 else f"{name}_{kind}"
        made[full] = Arm(
            name=full,
            kind=kind,
            source=str(entry[kind]),
            options=options,
            measure=chosen,
            unit=str(entry.get("unit", UNITS.get(chosen, chosen))),
            hours=float(entry.get("hours", scale.get("hours", 0))),
            paper=entry.get("paper", ""),
            backbone=entry.get("backbone", ""),
        )
    return made


def _merged(shared: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return the scale's options overridden by the arm's own, also within mappings such as model_kwargs."""
    inner = {
        key: {**shared[key], **value}
        for key, value in own.items()
        if isinstance(value, Mapping) and isinstance(shared.get(key), Mapping)
    }
    return {**shared, **own, **inner}


def _comparisons(content: Any, twins: Mapping[str, list[str]], place: str) -> list[Comparison]:
    entry = _mapping(content, ("arm", "than", "margin", "paper"), place)
    for key in ("arm", "than"):
        value = entry.get(key)
        if value not in twins and not (key == "than" and isinstance(value, (int, float))):
            raise ConfigError(f"{place}.{key}: {unknown_name('arm', value, twins)}")
    rest = {"margin": float(entry.get("margin", 0.0)), "paper": entry.get("paper", "")}
    names = twins[entry["arm"]]
    if not isinstance(entry["than"], str):
        return [Comparison(name, float(entry["than"]), **rest) for name in names]
    others = twins[entry["than"]]
    pairs = zip(names, others) if len(names) == len(others) else ((a, b) for a in names for b in others)
    return [Comparison(a, b, **rest) for a, b in pairs]


def _mapping(content: Any, known: Any, place: str) -> dict[str, Any]:
    if not isinstance(content, dict) or not content:
        raise ConfigError(f"{place} must contain `key: value` lines, but is {content!r:.60}")
    for key in content:
        if known is not None and key not in known:
            raise ConfigError(f"{place}: unknown key {key!r}.{did_you_mean(key, known)} Known: {', '.join(known)}")
    return content


def _text(content: Mapping[str, Any], key: str, place: str) -> str:
    value = content.get(key)
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"{place}.{key} must be text, but is {value!r}")
    return value.strip()
