"""One job for each arm and seed: its shell lines, and the locations of its files."""

from __future__ import annotations

import csv
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import ConfigError, unknown_name
from ..pretrain.command_line import option_words
from .study import FRAMEWORKS, TOOLS, Arm, Scale, Study

_PLACE = re.compile(r"\{(seed|data|run:[\w/]+)\}")
# MMDetection installs its training script with the package.
_MMDET_TRAIN = '"$({python} -c "import mmdet; print(mmdet.__path__[0])")/.mim/tools/train.py"'


@dataclass(frozen=True)
class Machines:
    """The machines of a run.

    Attributes:
        gpus: GPUs of each node; 0 for a CPU.
        nodes: number of nodes of a run; `topodet reproduce` is started on each of them with the same arguments except
            `rank`.
        rank: rank of this node, from 0.
        address: HOST:PORT of node 0, for the rendezvous of several nodes.
        python: interpreter for each framework that is installed in a separate environment.
    """

    gpus: int
    nodes: int = 1
    rank: int = 0
    address: str = ""
    python: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.gpus < 0 or self.nodes < 1 or not 0 <= self.rank < self.nodes:
            raise ConfigError(
                f"{self.gpus} GPUs on node {self.rank} of {self.nodes}: GPUs must be at least 0, nodes at least 1, and "
                "a node's rank below the number of nodes"
            )
        if self.nodes > 1 and not (self.gpus and re.fullmatch(r"[\w.-]+:\d+", self.address)):
            raise ConfigError(
                f"several nodes need GPUs and the address of node 0 as HOST:PORT, not {self.gpus} GPUs and "
                f"{self.address!r}"
            )
        for name in self.python:
            if name not in FRAMEWORKS:
                raise ConfigError(unknown_name("framework", name, FRAMEWORKS))

    @property
    def processes(self) -> int:
        """Number of processes of a run, on all nodes."""
        return max(1, self.gpus) * self.nodes

    def launcher(self, framework: str = "") -> str:
        """Return the command before a script: torch's launcher, or `python` if one process is enough."""
        python = shlex.quote(self.python.get(framework, "python"))
        if self.processes == 1:
            return python
        # Without a separate Python: `torchrun` is that of the first environment on the PATH.
        start = "torchrun" if python == "python" else f"{python} -m torch.distributed.run"
        if self.nodes == 1:
            return f"{start} --standalone --nproc_per_node {self.gpus}"
        host, port = self.address.split(":")
        where = f"--nnodes {self.nodes} --node_rank {self.rank} --master_addr {host} --master_port {port}"
        return f"{start} {where} --nproc_per_node {self.gpus}"


@dataclass(frozen=True)
class Places:
    """Folders, relative to the repository in which the commands run.

    Attributes:
        runs: folder of training outputs.
        data: folder of the datasets.
        records: folder of the records, with a subfolder for each study and scale.
    """

    runs: Path = Path("runs/studies")
    data: Path = Path("data")
    records: Path = Path("records/studies")


@dataclass(frozen=True)
class Job:
    """An arm with a seed."""

    study: Study
    scale: Scale
    arm: Arm
    seed: int
    places: Places

    @property
    def name(self) -> str:
        """Name of its folder and record."""
        return f"{self.arm.name}_seed{self.seed}"

    @property
    def folder(self) -> Path:
        """Folder of its run."""
        return self.places.runs / f"{self.study.name}-{self.scale.name}" / self.name

    @property
    def record(self) -> Path:
        """Path of its record."""
        return self.places.records / f"{self.study.name}-{self.scale.name}" / f"{self.name}.json"

    def needs(self) -> list[Job]:
        """Return the jobs of the same seed that it starts from."""
        names = [self.arm.backbone] if self.arm.backbone else []
        names += [self.arm.source] if self.arm.kind in ("damage", "run") else []
        names += [word[4:] for word in _places_in(self.arm.options) if word.startswith("run:")]
        return [self.other(name) for name in dict.fromkeys(names)]

    def other(self, name: str) -> Job:
        """Return the job of another arm ("ARM" or "STUDY/ARM") with the same seed; a "run" arm is resolved to its job.

        Raises:
            ConfigError: an unknown study, scale or arm.
        """
        study_name, _, arm_name = name.rpartition("/")
        study = self.study.other(study_name) if study_name else self.study
        scale = study.scale(self.scale.name)
        if arm_name not in scale.arms:
            raise ConfigError(f"study {self.study.name}, arm {self.arm.name}: {unknown_name('arm', name, scale.arms)}")
        job = Job(study, scale, scale.arms[arm_name], self.seed, self.places)
        return job.other(job.arm.source) if job.arm.kind == "run" else job

    def lines(self, machines: Machines) -> list[str]:
        """Return the shell lines that run or resume it.

        Raises:
            ConfigError: a number of images per update that cannot be split over the processes, or unknown options.
        """
        return list(_LINES[self.arm.kind](self, machines))

    def options(self) -> Any:
        """Return the options with `{seed}`, `{data}` and `{run:ARM}` filled in."""
        return _filled(self.arm.options, self)

    def epochs(self) -> tuple[int, int] | None:
        """Return the finished and total epochs of a pretraining run; None if unknown."""
        try:
            with open(self.folder / "summary.csv", newline="") as file:
                done = sum(1 for _ in csv.DictReader(file))
            found = re.search(r"^epochs: (\d+)$", (self.folder / "args.yaml").read_text(), re.MULTILINE)
        except OSError:
            return None
        return (done, int(found[1])) if found else None


def jobs_of(study: Study, scale: Scale, places: Places, *, seeds: int, frameworks: Sequence[str]) -> list[Job]:
    """Return the jobs of a study, with those of other studies that they start from, in the order in which they run.

    All arms of a seed come before the next seed, so a study that is stopped early is balanced.

    Args:
        study, scale, places: whose jobs.
        seeds: number of seeds, from 0.
        frameworks: frameworks of the detectors.
    """
    found: dict[tuple, Job] = {}

    def add(job: Job) -> None:
        for needed in job.needs():
            add(needed)
        if job.arm.kind != "run":
            found.setdefault((job.study.name, job.name), job)

    for seed in range(seeds):
        for arm in scale.arms.values():
            if arm.kind not in FRAMEWORKS or arm.kind in frameworks:
                add(Job(study, scale, arm, seed, places))
    return list(found.values())


def _pretrain(job: Job, machines: Machines) -> Iterator[str]:
    options = dict(job.options())
    if job.scale.images:
        images = _share(job.scale.images, machines)
        most = options.get("batch_size", images)  # per step; more images are accumulated over several steps
        if images > most and images % most == 0:
            options["grad_accum_steps"], images = images // most, most
        options["batch_size"] = images
    if job.scale.gpus and not machines.gpus:
        options |= {"device": "cpu", "amp": False}
    words = ["-c", job.arm.source, *option_words(options), "--seed", str(job.seed)]
    words += ["--output", str(job.folder.parent), "--experiment", job.folder.name, "--resume", "auto"]
    yield f"{machines.launcher()} -m topodet pretrain {shlex.join(words)}"


def _share(images: int, machines: Machines) -> int:
    """Return the images per process, from those per update.

    Raises:
        ConfigError: they cannot be divided evenly.
    """
    each, rest = divmod(images, machines.processes)
    if rest:
        raise ConfigError(
            f"{images} images per update cannot be divided among {machines.processes} processes: choose --gpus and "
            "--nodes that divide them"
        )
    return each


def _published(job: Job) -> str:
    """Return the shell pattern of the published backbone of a job, whose name ends in a hash."""
    return f"{shlex.quote(str(job.folder.parent))}/published/{job.name}-????????.pth"


def _publish(job: Job, machines: Machines) -> Iterator[str]:
    """Yield the line that publishes the backbone that a detector starts from, unless it exists."""
    if not job.arm.backbone:
        return
    source = job.other(job.arm.backbone)
    pattern = _published(source)
    if machines.rank:  # node 0 publishes
        yield f"until ls {pattern} 2>/dev/null; do sleep 10; done"
        return
    words = [f"{source.folder}/last.pth.tar", "--output", f"{source.folder.parent}/published", "--name", source.name]
    yield f"ls {pattern} 2>/dev/null || python -m topodet publish {shlex.join(words)}"


def _start(job: Job) -> str:
    """Return the shell expression for the weights of a detector's backbone, for use within double quotes."""
    return f"$(ls {_published(job.other(job.arm.backbone))})"


def _mmdetection(job: Job, machines: Machines) -> Iterator[str]:
    if re.search(r"\s", str(job.folder)):
        raise ConfigError(
            f"MMEngine's --cfg-options drops the spaces in {str(job.folder)!r}: choose --runs without spaces"
        )
    yield from _publish(job, machines)
    options: dict[str, Any] = {"randomness.seed": job.seed, **job.options()}
    total = options.pop("images", 0)
    if total:
        options["train_dataloader.batch_size"] = _share(total, machines)
    given = [shlex.quote(f"{key}={_python_text(value)}") for key, value in options.items()]
    if job.arm.backbone:
        given.insert(0, f'"model.backbone.pretrained={_start(job)}"')
    python = shlex.quote(machines.python.get("mmdetection", "python"))
    launcher = machines.launcher("mmdetection")
    words = [launcher, _MMDET_TRAIN.format(python=python), shlex.quote(job.arm.source)]
    words += ["--launcher pytorch"] if machines.processes > 1 else []
    yield " ".join([*words, "--work-dir", shlex.quote(str(job.folder)), "--resume", "--cfg-options", *given])


def _detectron2(job: Job, machines: Machines) -> Iterator[str]:
    yield from _publish(job, machines)
    options = dict(job.options())
    words = [machines.python.get("detectron2", "python"), "-m", "topodet", "train-net"]
    words += ["--config-file", job.arm.source, "--resume"]
    if machines.gpus:
        words += ["--num-gpus", str(machines.gpus)]
    if machines.nodes > 1:
        words += ["--num-machines", str(machines.nodes), "--machine-rank", str(machines.rank)]
        words += ["--dist-url", f"tcp://{machines.address}"]
    for dataset in options.pop("datasets", ()):  # each with name, annotations and images
        words += ["--dataset", *dataset]
    words += [] if machines.gpus else ["MODEL.DEVICE", "cpu"]
    for key, value in {"SEED": job.seed, "OUTPUT_DIR": job.folder, **options}.items():
        words += [key, str(value)]
    start = f' MODEL.TOPONET.PRETRAINED "{_start(job)}"' if job.arm.backbone else ""
    data = shlex.quote(str(job.places.data))
    yield f"DETECTRON2_DATASETS={data} {shlex.join(words)}{start}"


def _damage(job: Job, machines: Machines) -> Iterator[str]:
    source = job.other(job.arm.source)
    words = [f"{source.folder}/last.pth.tar", "--output", str(job.folder), *_tool_words(job.options())]
    if job.scale.gpus and not machines.gpus:
        words += ["--device", "cpu"]
    yield f"python -m topodet damage {shlex.join(words)}"


def _tool(job: Job, machines: Machines) -> Iterator[str]:
    options = job.options()
    first = job.seed * options.get("networks", options.get("seeds", 1))  # no two jobs share a network
    words = [*_tool_words(options), "--first-seed", str(first), "--json", f"{job.folder}/result.json"]
    yield f"python {TOOLS[job.arm.source]} {shlex.join(words)}"


_LINES = {
    "pretrain": _pretrain,
    "mmdetection": _mmdetection,
    "detectron2": _detectron2,
    "damage": _damage,
    "tool": _tool,
}


def _tool_words(options: Mapping[str, Any]) -> list[str]:
    words = []
    for key, value in options.items():
        name = key.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        else:
            values = value if isinstance(value, list) else [value]
            words += [f"--{name}", *map(str, values)]
    return words


def _places_in(content: Any) -> Iterator[str]:
    if isinstance(content, str):
        yield from _PLACE.findall(content)
    elif isinstance(content, Mapping):
        for value in content.values():
            yield from _places_in(value)
    elif isinstance(content, Sequence):
        for value in content:
            yield from _places_in(value)


def _filled(content: Any, job: Job) -> Any:
    if content == "{seed}":
        return job.seed
    if isinstance(content, str):
        return _PLACE.sub(lambda match: _meaning(match[1], job), content)
    if isinstance(content, Mapping):
        return {key: _filled(value, job) for key, value in content.items()}
    if isinstance(content, Sequence):
        return [_filled(value, job) for value in content]
    return content


def _meaning(word: str, job: Job) -> str:
    if word.startswith("run:"):
        return str(job.other(word[4:]).folder)
    return str(job.seed if word == "seed" else job.places.data)


def _python_text(value: Any) -> str:
    """Return a value as MMEngine's --cfg-options reads it: strings unquoted, lists with commas."""
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(_python_text, value)) + "]"
    return str(value)
