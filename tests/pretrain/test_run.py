"""Runs from the options to the files, in this process."""

from __future__ import annotations

import csv
import json

import pytest
import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN
from timm.models import model_parameters
from timm.utils import dispatch_clip_grad

from topodet import connectivity, weights
from topodet.errors import ConfigError
from topodet.pretrain import main
from topodet.pretrain.command_line import parse
from topodet.pretrain.engine import clipped_parameters

from .helpers import assert_losses_are_of_their_updates, curve, load, options, train, write_images


@pytest.fixture(scope="module")
def finished(images, tmp_path_factory):
    """A finished run with every kind of file, and its rows."""
    output = tmp_path_factory.mktemp("finished")
    more = ("--sparsity", "adaptive", "--sparsity-weight", "0.001", "--model-ema", "--model-ema-decay", "0.5")
    rows = train(images, output, *more, "--figure-interval", "1", "--epochs", "3", "--checkpoint-hist", "2")
    return output, rows


def test_learns(finished):
    _, rows = finished
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]
    assert rows[-1]["train_top1"] > 60
    assert [row["bad_images"] for row in rows] == [0, 0, 0]


def test_summary_has_one_row_an_epoch(finished):
    output, rows = finished
    written = list(csv.DictReader((output / "summary.csv").open()))
    assert [row["epoch"] for row in written] == ["0", "1", "2"]
    assert float(written[1]["train_loss"]) == rows[1]["train_loss"]
    names = "train_loss penalty train_top1 eval_loss eval_top1 eval_top5 ema_eval_top1 lr images_per_s edges_below_0.01"
    assert set(names.split()) <= set(written[0])


def test_checkpoint_holds_what_publishing_needs(finished):
    output, rows = finished
    state = load(output / "last.pth.tar")
    assert state["arch"] == "toponet_nano"
    assert state["epoch"] == 2
    assert state["num_classes"] == 3
    assert state["class_names"] == ["class0", "class1", "class2"]
    assert state["data_config"]["input_size"] == [3, 32, 32]
    assert set(state["data_config"]) >= {"mean", "std", "interpolation", "crop_pct"}
    assert state["history"] == rows
    assert state["metric"] == rows[-1]["ema_eval_top1"]
    assert state["args"]["sparsity"] == "adaptive"
    model = timm.create_model("toponet_nano", num_classes=3)
    model.load_state_dict(state["state_dict"])
    model.load_state_dict(state["state_dict_ema"])


def test_best_and_last_few_checkpoints_are_kept(finished):
    output, rows = finished
    best = max(rows, key=lambda row: row["ema_eval_top1"])["epoch"]
    assert load(output / "model_best.pth.tar")["epoch"] == best
    kept = {path.name for path in output.glob("checkpoint-*")}
    assert len(kept) == 2
    assert f"checkpoint-{best}.pth.tar" in kept
    assert not list(output.glob("*tmp*"))


def test_pictures_and_board(finished):
    output, rows = finished
    pictures = sorted(path.name for path in (output / "figures").iterdir())
    assert pictures == [f"{kind}_epoch{epoch:03d}.png" for kind in ("adjacency", "alpha") for epoch in range(3)]
    losses = curve(output)
    assert len(losses) == 3 * 4
    assert sum(losses[:4]) / 4 == pytest.approx(rows[0]["train_loss"], rel=1e-5)
    penalties = curve(output, "step/penalty")
    assert penalties[0] == pytest.approx(
        0.001 * connectivity.penalty(timm.create_model("toponet_nano"), "adaptive").item(), rel=1e-5
    )


def test_options_written_down_start_the_same_run(finished):
    output, _ = finished
    again = parse(["-c", str(output / "args.yaml")]).flat()
    before = load(output / "last.pth.tar")["args"]
    assert before["sparsity_weight"] == 0.001
    assert {**again, "config": None, "world_size": 1} == before


def test_penalty_shrinks_edges(images, tmp_path):
    train(images, tmp_path / "without", "--epochs", "1")
    train(images, tmp_path / "with", "--epochs", "1", "--sparsity", "uniform", "--sparsity-weight", "0.1")
    sizes = []
    for name in ("without", "with"):
        state = load(tmp_path / name / "last.pth.tar")["state_dict"]
        sizes.append(sum(value.abs().sum() for key, value in state.items() if key.endswith("alpha")))
    assert sizes[1] < sizes[0]


def test_accumulated_micro_batches_equal_the_whole_batch(images, tmp_path):
    more = ("--no-aug", "--model-kwargs", "norm_layer=groupnorm1", "--sparsity", "adaptive", "--epochs", "1")
    train(images, tmp_path / "whole", *more)
    train(images, tmp_path / "parts", *more, "--batch-size", "4", "--grad-accum-steps", "2")
    whole, parts = curve(tmp_path / "whole"), curve(tmp_path / "parts")
    assert len(whole) == 4
    assert parts == pytest.approx(whole, abs=1e-4)


def test_average_of_the_weights(images, tmp_path):
    train(images, tmp_path, "--epochs", "1", "--model-ema", "--model-ema-decay", "0.9")
    state = load(tmp_path / "last.pth.tar")
    name = "head.fc.weight"
    assert not torch.equal(state["state_dict"][name], state["state_dict_ema"][name])
    # An average with nothing kept of the past is the weights themselves.
    train(images, tmp_path / "none", "--epochs", "1", "--model-ema", "--model-ema-decay", "1e-9")
    state = load(tmp_path / "none" / "last.pth.tar")
    torch.testing.assert_close(state["state_dict_ema"][name], state["state_dict"][name])


@pytest.mark.parametrize(
    "more",
    [
        ("--amp", "--amp-dtype", "bfloat16", "--channels-last"),
        ("--amp", "--amp-dtype", "float16", "--clip-grad", "1"),
        ("--mixup", "0.2", "--cutmix", "1.0", "--opt", "adamw", "--sched", "step", "--grad-checkpointing"),
        ("--mixup", "0.2", "--no-prefetcher", "--bce-loss", "--no-sched-on-updates", "--workers", "1"),
        ("--aug-splits", "2", "--jsd-loss", "--aa", "rand-m3", "--reprob", "0.5", "--resplit"),
        ("--torchcompile", "eager", "--clip-grad", "0.01", "--clip-mode", "agc", "--val-interval", "2"),
        ("--val-split", "", "--eval-metric", "loss"),
        ("--dataset", "torch/image_folder", "--initial-checkpoint", "START"),
        ("--model", "resnet10t", "--drop-path", "0.1"),
        ("--opt", "adahessian", "--lr", "0.01", "--sparsity", "uniform", "--clip-grad", "1"),
    ],
    ids=lambda more: more[0] + more[1],
)
def test_options_in_use(images, finished, tmp_path, more):
    more = [str(finished[0] / "last.pth.tar") if word == "START" else word for word in more]
    rows = train(images, tmp_path, *more)
    assert [row["epoch"] for row in rows] == [0, 1]
    assert_losses_are_of_their_updates(rows, tmp_path)
    assert load(tmp_path / "last.pth.tar")["epoch"] == 1


def test_adaptive_clipping_leaves_the_classifier_alone():
    """The gradient of a bias that is 0 may be as large as it likes; everything else is bounded by its weights."""
    model = timm.create_model("toponet_nano", num_classes=5)
    model(torch.randn(4, 3, 32, 32)).square().sum().backward()
    before = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    dispatch_clip_grad(clipped_parameters(model, "agc"), 0.01, mode="agc")
    clipped = {name for name, parameter in model.named_parameters() if not torch.equal(parameter.grad, before[name])}
    assert clipped
    assert not any(name.startswith("head.") for name in clipped)
    # timm's own: all but the last two.
    assert list(map(id, clipped_parameters(model, "agc"))) == list(map(id, model_parameters(model, exclude_head=True)))
    assert list(map(id, clipped_parameters(model, "norm"))) == list(map(id, model.parameters()))


@pytest.mark.parametrize("more", [(), ("--no-prefetcher",)], ids=["on the device", "in the loader"])
def test_grey_images_have_one_mean(images, tmp_path, more):
    train(images, tmp_path, "--in-chans", "1", "--epochs", "1", *more)
    state = load(tmp_path / "last.pth.tar")
    # What timm gives every channel of a network that has others than the three of its statistics.
    mean = sum(IMAGENET_DEFAULT_MEAN) / 3
    assert state["data_config"]["mean"] == [pytest.approx(mean)]
    assert len(state["data_config"]["std"]) == 1
    assert state["state_dict"]["stem.conv.weight"].shape[1] == 1
    files = weights.publish(tmp_path / "last.pth.tar", tmp_path / "published")
    card = json.loads(files.card.read_text())
    assert (card["channel_order"], card["mean"], card["in_chans"]) == ("L", [pytest.approx(mean)], 1)
    # Checkpoints from before had three numbers.
    state["data_config"] |= {"mean": list(IMAGENET_DEFAULT_MEAN), "std": [0.2, 0.2, 0.2]}
    del state["sha256"]
    torch.save(state, tmp_path / "old.pth.tar")
    old = weights.publish(tmp_path / "old.pth.tar", tmp_path / "old")
    assert json.loads(old.card.read_text())["mean"] == [pytest.approx(mean)]


def test_learning_rate_scales_with_the_images_of_an_update(images, tmp_path):
    argv = options(images, tmp_path, "--grad-accum-steps", "2", "--lr-base", "0.32", "--lr-base-size", "256")
    del argv[argv.index("--lr") : argv.index("--lr") + 2]
    argv += ["--sched", "multistep", "--decay-milestones", "50"]
    assert main(argv) == 0
    assert curve(tmp_path, "step/lr") == pytest.approx([0.32 * 16 / 256] * 4)


def test_validation_counts_each_image_once(tmp_path):
    images = write_images(tmp_path / "images", {"train": 4, "validation": 5})
    rows = train(images, tmp_path / "out", "--validation-batch-size", "4", "--epochs", "1")
    # 15 images: shares of any other number would not be multiples of 1/15.
    assert rows[0]["eval_top1"] * 15 / 100 == pytest.approx(round(rows[0]["eval_top1"] * 15 / 100), abs=1e-9)


def test_command_line_goes_before_the_file(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("model: toponet_small\nlr: 1e-2\namp: true\nscale: [0.5, 1.0]\nmodel_kwargs: {width: 8}\n")
    args = parse(["-c", str(path), "--lr", "0.3", "--no-amp"])
    assert (args.model.model, args.schedule.lr, args.device.amp, args.augmentation.scale) == (
        "toponet_small",
        0.3,
        False,
        [0.5, 1.0],
    )
    assert args.model.model_kwargs == {"width": 8}
    assert parse(["-c", str(path)]).schedule.lr == 0.01


def test_sparsity_needs_edges(images, tmp_path):
    with pytest.raises(ConfigError, match="'adaptive' on a model without learned edge weights"):
        train(images, tmp_path, "--model", "resnet10t", "--sparsity", "adaptive")
