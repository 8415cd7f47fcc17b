"""Every recipe under configs/pretrain is read, and builds what it names."""

from __future__ import annotations

import pytest
import torch
import yaml

from topodet import connectivity
from topodet.pretrain.build import create_model, create_optimizer, scaled_lr
from topodet.pretrain.command_line import parse
from topodet.pretrain.group import Group
from topodet.pretrain.run import run

from .helpers import ROOT, assert_losses_are_of_their_updates, curve, load, options

RECIPES = sorted((ROOT / "configs" / "pretrain").glob("*.yaml"))
OTHERS = ("mobilenet", "toponet_nano")
IMAGENET = [path for path in RECIPES if path.stem.endswith("_imagenet") and not path.stem.startswith(OTHERS)]
TABLE1 = [path for path in RECIPES if path.stem.endswith("_cifar100")]
LEARNED = ("toponet50", "toponet_nano", "resnet20_cifar_connected")


def test_a_recipe_for_each_row_of_table_4():
    rows = "complete complete_alpha uniform adaptive residual2 residual3 residual4 random40 random60 random80 er ba ws"
    names = {f"toponet50_{row}_imagenet" for row in rows.split()} | {"resnet50_imagenet"}
    assert {path.stem for path in IMAGENET} == names | {"toponet50_smallworld_imagenet"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_builds(path):
    args = parse(["-c", str(path)])
    assert args.run.experiment == path.stem
    group = Group(rank=0, world_size=1, device=torch.device("cpu"))
    model = create_model(args, num_classes=1000, channels=3, group=group)
    optimizer = create_optimizer(args.optimizer, args.edges.alpha_weight_decay, model, lr=0.1)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert sum(len(value) for part in optimizer.param_groups for value in part["params"] if value.ndim == 1) > 0
    assert sum(value.numel() for part in optimizer.param_groups for value in part["params"]) == parameters
    learned = [part for part in optimizer.param_groups if part.get("name") == "alpha"]
    assert all(part["weight_decay"] == 0 for part in learned)
    assert bool(learned) == (args.model.model in LEARNED)
    assert connectivity.penalty(model, args.edges.sparsity) >= 0


@pytest.mark.parametrize("path", IMAGENET, ids=lambda path: path.stem)
def test_is_the_papers_training(path):
    args = parse(["-c", str(path)])
    assert (args.schedule.epochs, args.model.img_size, args.optimizer.weight_decay, args.augmentation.smoothing) == (
        100,
        224,
        1e-4,
        0.1,
    )
    assert (args.optimizer.opt, args.optimizer.momentum, args.schedule.sched) == (
        "sgd",
        0.9,
        "cosine",
    )  # timm's sgd is Nesterov's
    eight = Group(rank=0, world_size=8, device=torch.device("cpu"))
    assert args.optimizer.batch_size * eight.world_size == 1024
    assert scaled_lr(args, eight) == pytest.approx(0.4)
    assert args.edges.sparsity == {"uniform": "uniform", "adaptive": "adaptive"}.get(path.stem.split("_")[1], "none")
    assert args.edges.sparsity_weight == 1e-4
    assert args.model.drop is None


def test_the_papers_training_of_mobilenetv2():
    args = parse(["-c", str(ROOT / "configs/pretrain/mobilenetv2_imagenet.yaml")])
    assert (args.schedule.epochs, args.model.img_size, args.model.drop) == (200, 224, 0.2)
    assert (args.optimizer.weight_decay, args.optimizer.opt, args.schedule.sched) == (4e-5, "sgd", "cosine")
    eight = Group(rank=0, world_size=8, device=torch.device("cpu"))
    assert args.optimizer.batch_size * eight.world_size == 1024
    assert scaled_lr(args, eight) == pytest.approx(0.4)


def test_a_recipe_for_each_form_of_table_1():
    forms = ("", "_connected", "_connected_uniform", "_connected_adaptive")
    assert {path.stem for path in TABLE1} == {f"resnet20{form}_cifar100" for form in forms}


@pytest.mark.parametrize("path", TABLE1, ids=lambda path: path.stem)
def test_is_the_papers_training_of_cifar(path):
    args = parse(["-c", str(path)])
    assert args.model.model == ("resnet20_cifar_connected" if "connected" in path.stem else "resnet20_cifar")
    assert (
        args.schedule.epochs,
        args.optimizer.batch_size,
        args.optimizer.weight_decay,
        args.augmentation.smoothing,
    ) == (200, 128, 5e-4, 0)
    assert (args.optimizer.opt, args.optimizer.momentum, args.schedule.lr) == ("sgd", 0.9, 0.1)
    assert (args.schedule.sched, args.schedule.decay_milestones, args.schedule.warmup_epochs) == (
        "multistep",
        [60, 120, 160],
        0,
    )
    assert args.schedule.decay_rate == pytest.approx(1 / 5)
    assert (args.augmentation.crop_padding, args.augmentation.hflip, args.augmentation.cutout) == (4, 0.5, 8)
    assert args.edges.sparsity == {"uniform": "uniform", "adaptive": "adaptive"}.get(path.stem.split("_")[-2], "none")
    assert args.edges.sparsity_weight == 1e-4


@pytest.mark.parametrize("path", TABLE1, ids=lambda path: path.stem)
def test_cifar_recipes_train_on_arrays(arrays, tmp_path, path):
    argv = ["-c", str(path), "--dataset", "npz", "--data-dir", str(arrays), "--output", str(tmp_path)]
    short = ["--epochs", "4", "--decay-milestones", "1", "2", "3", "--batch-size", "16", "--device", "cpu"]
    rows = run(parse([*argv, *short]))
    assert_losses_are_of_their_updates(rows, tmp_path / path.stem)
    # 2 updates an epoch. timm counts a milestone from the update before it.
    rates = [0.1, 0.02, 0.02, 0.004, 0.004, 0.0008, 0.0008, 0.0008]
    assert curve(tmp_path / path.stem, "step/lr") == pytest.approx(rates)
    data_config = load(tmp_path / path.stem / "last.pth.tar")["data_config"]
    assert (data_config["input_size"], data_config["crop_pct"]) == ([3, 32, 32], 1)


def test_nesterov():
    args = parse(["-c", str(ROOT / "configs/pretrain/toponet_nano_quick.yaml")])
    model = torch.nn.Linear(2, 2)
    optimizer = create_optimizer(args.optimizer, args.edges.alpha_weight_decay, model, lr=0.1)
    assert all(part["nesterov"] and part["momentum"] == 0.9 for part in optimizer.param_groups)


@pytest.mark.parametrize("name", ["toponet50_adaptive_imagenet", "toponet_nano_quick", "toponet_nano_tiny_imagenet75"])
def test_trains(images, tmp_path, name):
    recipe = str(ROOT / "configs" / "pretrain" / f"{name}.yaml")
    small = ("--no-amp", "--epochs", "1", "--experiment", name)
    if name.startswith("toponet50"):
        small += ("--model-kwargs", "width=8")
    argv = options(images, tmp_path, *small)
    model = argv.index("--model")
    del argv[model : model + 2]
    rows = run(parse(["-c", recipe, *argv]))
    assert len(rows) == 1
    assert yaml.safe_load((tmp_path / name / "args.yaml").read_text())["model"] in ("toponet50", "toponet_nano")
