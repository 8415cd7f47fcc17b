"""The commands of every study, read by the parsers of what they start."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from topodet.errors import ConfigError
from topodet.frameworks import PACKAGES
from topodet.pretrain.command_line import parse
from topodet.reproduce import find_study
from topodet.reproduce.jobs import Machines, Places, jobs_of
from topodet.reproduce.study import FRAMEWORKS

from .helpers import ROOT

STUDIES = sorted(path.stem for path in (ROOT / "configs" / "studies").glob("*.yaml"))
SCALES = [(name, scale) for name in STUDIES for scale in find_study(name, ROOT).scales]


def jobs(name, scale, *, seeds=1, frameworks=FRAMEWORKS):
    study = find_study(name, ROOT)
    return jobs_of(study, study.scale(scale), Places(), seeds=seeds, frameworks=frameworks)


def line_of(name, scale, arm, machines):
    (job,) = [job for job in jobs(name, scale) if (job.arm.name, job.study.name) == (arm, name)]
    return job.lines(machines)[-1]


@pytest.mark.parametrize(("name", "scale"), SCALES)
def test_every_pretraining_is_understood(name, scale, monkeypatch):
    monkeypatch.chdir(ROOT)
    for job in jobs(name, scale, seeds=2):
        if job.arm.kind != "pretrain":
            continue
        words = shlex.split(job.lines(Machines(job.scale.gpus))[0])
        options = parse(words[words.index("pretrain") + 1 :])
        assert (options.run.seed, options.run.resume) == (job.seed, "auto")
        assert Path(options.run.output, options.run.experiment) == job.folder
        assert Path(options.data.data_dir).is_relative_to("data")
        processes = job.scale.gpus or 1
        if job.scale.images:
            steps = options.optimizer.grad_accum_steps
            assert options.optimizer.batch_size * steps * processes == job.scale.images
        assert words[0] == ("torchrun" if processes > 1 else "python")


@pytest.mark.parametrize(
    ("name", "scale"), [pair for pair in SCALES if pair[0] in ("fig4", "nnstd", "swnet", "nn_mass")]
)
def test_every_tool_is_understood(name, scale):
    from tools import nn_mass_experiment, small_world_experiment, sparse_topologies
    from topodet.commands import damage

    parsers = {"damage": damage, "nn_mass_experiment": nn_mass_experiment, "sparse_topologies": sparse_topologies}
    parsers["small_world_experiment"] = small_world_experiment
    found = [job for job in jobs(name, scale) if job.arm.kind in ("damage", "tool")]
    assert found
    for job in found:
        words = shlex.split(job.lines(Machines(job.scale.gpus))[0])
        if words[:3] == ["python", "-m", "topodet"]:
            words = words[2:]
        parsers[Path(words[1]).stem].parser().parse_args(words[2:])


@pytest.mark.parametrize("scale", ["small", "paper"])
def test_every_detector_of_mmdetection_is_understood(scale, monkeypatch):
    config = pytest.importorskip("mmengine.config", reason="needs the mmdet extra")
    pytest.importorskip("mmdet", reason="needs the mmdet extra")
    monkeypatch.chdir(ROOT)
    found = [job for job in jobs("table5", scale) if job.arm.kind == "mmdetection"]
    for job in found[-1:]:  # the others differ in a name
        line = job.lines(Machines(job.scale.gpus))[-1]
        given = shlex.split(re.sub(r"\$\(ls ([^)]+)\)", r"\1", line.rpartition("--cfg-options ")[2]))
        values = {key: yaml.safe_load(text) for key, _, text in (word.partition("=") for word in given)}
        made = config.Config.fromfile(job.arm.source)
        made.merge_from_dict(values)
        assert made.randomness.seed == job.seed
        assert made.model.backbone.get("pretrained") == values.get("model.backbone.pretrained")
        if scale == "small":
            assert (made.model.backbone.arch, made.model.neck.in_channels) == ("pretrained", [24, 48, 96, 192])
            kinds = [(hook.type, hook.kind) for hook in made.custom_hooks if "kind" in hook]
            assert kinds == [("SparsityHook", "none")]
        else:
            assert made.train_dataloader.batch_size * 8 == 16


def test_detectors_with_a_connected_backbone_are_built(monkeypatch):
    pytest.importorskip("mmdet", reason="needs the mmdet extra")
    from mmdet.registry import MODELS
    from mmengine.config import Config

    import topodet.mmdet  # noqa: F401 - registers the backbone
    from topodet import connectivity

    monkeypatch.chdir(ROOT)
    found = {}
    for job in jobs("connected_bccd", "small"):
        given = shlex.split(job.lines(Machines(0))[-1].rpartition("--cfg-options ")[2])
        made = Config.fromfile(job.arm.source)
        made.merge_from_dict({key: yaml.safe_load(text) for key, _, text in (word.partition("=") for word in given)})
        assert made.model.backbone.pretrained == "data/weights/tf_efficientnet_lite0.pth"
        backbone = MODELS.build({**made.model.backbone, "pretrained": None})
        assert list(backbone.out_channels) == made.model.neck.in_channels
        edges = [wiring.topology.num_edges for wiring in connectivity.wirings(backbone).values()]
        kinds = [(hook.kind, hook.weight) for hook in made.custom_hooks if hook.type == "SparsityHook"]
        found[job.arm.name] = (getattr(backbone, "connect_nodes", None), edges, kinds)
    assert found == {
        "plain": ("residuals", [], []),
        "residuals": ("residuals", [3, 3, 6, 6, 10], [("none", 1e-4)]),
        "adaptive": ("residuals", [3, 3, 6, 6, 10], [("adaptive", 1e-3)]),
        "blocks": ("blocks", [3, 3, 6], [("none", 1e-4)]),
    }


@pytest.mark.parametrize("scale", ["small", "paper"])
def test_every_detector_of_detectron2_is_understood(scale, monkeypatch):
    pytest.importorskip("detectron2", reason="detectron2 is not installed")
    from topodet.commands import train_net
    from topodet.detectron2 import load_config

    monkeypatch.chdir(ROOT)
    for job in [job for job in jobs("table5", scale) if job.arm.kind == "detectron2"]:
        line = re.sub(r"\$\(ls ([^)]+)\)", r"\1", job.lines(Machines(job.scale.gpus))[-1])
        words = shlex.split(line)
        args = train_net.parser().parse_args(words[words.index("train-net") + 1 :])
        cfg = load_config(args.config_file, args.opts)
        assert (cfg.SEED, cfg.OUTPUT_DIR, args.resume) == (job.seed, str(job.folder), True)
        assert args.num_gpus == (job.scale.gpus or 1)
        if job.arm.backbone:
            assert cfg.MODEL.TOPONET.PRETRAINED.startswith(f"runs/studies/table4-{scale}/published/")


def test_a_seed_goes_before_the_next_and_what_is_needed_before_what_needs_it():
    order = [(job.study.name, job.arm.name, job.seed) for job in jobs("table5", "small", seeds=2)]
    assert order[:3] == [
        ("table4", "residual2", 0),
        ("table5", "residual2_mmdetection", 0),
        ("table5", "residual2_detectron2", 0),
    ]
    assert [seed for *_, seed in order] == sorted(seed for *_, seed in order)
    assert len(set(order)) == len(order) == 2 * (4 + 8)
    only = jobs("table5", "small", frameworks=("detectron2",))
    assert {job.arm.kind for job in only} == {"pretrain", "detectron2"}
    order = [f"{job.study.name}/{job.arm.name}" for job in jobs("fig4", "small")]
    assert order[0] == "table1/adaptive"
    assert order.index("fig4/retrained80_network") < order.index("fig4/scratch80")


def test_machines():
    assert line_of("table4", "paper", "adaptive", Machines(8)).startswith(
        "torchrun --standalone --nproc_per_node 8 -m topodet pretrain -c "
    )
    two = Machines(8, nodes=2, rank=1, address="node0:29500")
    line = line_of("table4", "paper", "adaptive", two)
    assert line.startswith(
        "torchrun --nnodes 2 --node_rank 1 --master_addr node0 --master_port 29500 --nproc_per_node 8 "
    )
    assert "--batch-size=64" in line
    assert "--batch-size=128 " in (line := line_of("table4", "paper", "adaptive", Machines(2)))
    assert "--grad-accum-steps=4" in line
    line = line_of("table5", "paper", "adaptive_detectron2", two)
    assert "--num-gpus 8 --num-machines 2 --machine-rank 1 --dist-url tcp://node0:29500 " in line
    line = line_of("table5", "paper", "adaptive_mmdetection", two)
    assert "--launcher pytorch" in line
    assert "train_dataloader.batch_size=1" in line
    assert "--amp" not in (line := line_of("table4", "paper", "adaptive", Machines(0))).split()
    assert "--device=cpu --no-amp" in line
    own = Machines(1, python={"detectron2": "/d2/bin/python"})
    assert " /d2/bin/python -m topodet train-net " in line_of("table5", "paper", "adaptive_detectron2", own)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"gpus": -1}, r"GPUs must be at least 0"),
        ({"gpus": 8, "nodes": 2, "rank": 2}, r"on node 2 of 2"),
        ({"gpus": 8, "nodes": 2, "address": "node0"}, r"HOST:PORT, not 8 GPUs and 'node0'"),
        ({"gpus": 0, "python": {"mmdet": "python"}}, r"unknown framework 'mmdet'. Did you mean 'mmdetection'"),
    ],
)
def test_machines_that_cannot_be(values, message):
    with pytest.raises(ConfigError, match=message):
        Machines(**values)


def test_images_that_cannot_be_shared():
    with pytest.raises(ConfigError, match=r"1024 images per update cannot be divided among 3 processes"):
        line_of("table4", "paper", "adaptive", Machines(3))


def test_a_folder_whose_name_mmengine_would_change():
    study = find_study("table5", ROOT)
    places = Places(runs=Path("my runs"))
    job = jobs_of(study, study.scale("small"), places, seeds=1, frameworks=("mmdetection",))[1]
    with pytest.raises(ConfigError, match=r"drops the spaces in 'my runs/table5-small/residual2_mmdetection_seed0'"):
        job.lines(Machines(0))


def test_the_frameworks_are_those_of_records():
    assert set(FRAMEWORKS) == set(PACKAGES)
