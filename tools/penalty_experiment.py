#!/usr/bin/env python
"""Which distance should the penalty shrink where edges start as a chain: |alpha|, or |alpha - start|?

    python tools/penalty_experiment.py --record penalty_digits      # minutes, on a CPU
    python tools/penalty_experiment.py --seeds 1 --json trial.json
    python tools/penalty_experiment.py --redraw penalty_digits      # only the picture, from the record

A ResNet-32 for CIFAR is trained on a part of scikit-learn's digits, then connected with nodes="blocks" and trained on
with each penalty, from the same weights and with the same batches. docs/connect.md explains the record.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import timm
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn
from tqdm import tqdm

from topodet import connectivity
from topodet.datasets.digits import Digits
from topodet.errors import ConfigError, exit_status
from topodet.models import connect
from topodet.models.wiring import Wiring
from topodet.records import experiment_cli, markdown
from topodet.records.statistics import paired

ROOT = Path(__file__).resolve().parents[1]
ARCH = "resnet32_cifar"
BATCH = 32
LR = 0.05
SMALL = 0.01
Penalty = Callable[[nn.Module], Tensor]


def main(argv: list[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else argv
    return exit_status(run, parser().parse_args(words), words)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = made.add_argument
    add("--seeds", type=int, default=10, help="number of seeds (default: %(default)s)")
    add("--images", type=int, default=500, help="images to train on (default: %(default)s)")
    add("--weights", type=float, nargs="+", default=[0.003, 0.03], help="lambda of the penalties")
    add("--epochs-before", type=int, default=5, help="epochs without wiring (default: %(default)s)")
    add("--epochs", type=int, default=4, help="epochs with it (default: %(default)s)")
    experiment_cli.add_outputs(made)
    return made


def run(args: argparse.Namespace, words: list[str]) -> None:
    if args.redraw:
        experiment_cli.redraw(ROOT, args.redraw, figure)
        return
    if args.seeds < 2:
        raise ConfigError(f"--seeds {args.seeds}: intervals need at least 2 seeds")
    if args.epochs_before < 0 or args.epochs < 1:
        raise ConfigError(f"--epochs-before {args.epochs_before} --epochs {args.epochs}: give at least 0 and 1")
    if min(args.weights) <= 0 or len(set(args.weights)) < len(args.weights):
        raise ConfigError(f"--weights {args.weights}: give different numbers above 0")
    torch.set_num_threads(1)  # the network is too small for more
    experiment_cli.deliver(
        experiment(args),
        args,
        words,
        root=ROOT,
        tool="tools/penalty_experiment.py",
        name="penalty",
        packages=("scikit-learn",),
        table=table,
        draw=figure,
    )


def on_magnitude(model: nn.Module) -> Tensor:
    """Return the adaptive penalty on |alpha| (Eq. 8 as it is), also where edges start as a chain."""
    total = torch.zeros(())
    for wiring in connectivity.wirings(model).values():
        in_degree = torch.tensor([wiring.topology.in_degree[target] for _, target in wiring.topology.edges])
        total = total + (in_degree.log() * wiring.alpha.abs()).sum()
    return total


def on_distance(model: nn.Module) -> Tensor:
    """Return topodet's adaptive penalty, on the distance from the initial weights."""
    return connectivity.penalty(model, "adaptive")


PENALTIES: dict[str, Penalty] = {"magnitude": on_magnitude, "distance": on_distance}


def experiment(args: argparse.Namespace) -> dict[str, Any]:
    """Train every arm from every seed.

    Raises:
        ConfigError: more images than there are, or too few.

    Returns:
        "data", "settings" and "arms": rows of {"penalty": None, "magnitude" or "distance", "weight": lambda,
        "connected", "top1" in percent, one value per seed}; if connected also "half", top-1 with the strongest half of
        each node's edges, "weakest", the smallest |alpha| of the chain, "small", the share below 0.01 of the
        edges that started at 0, and "alpha", the edge weights of the first seed: {"chain", "others"}.
    """
    digits = Digits()
    if not 1 < args.images <= len(digits.train[0]):
        raise ConfigError(
            f"--images {args.images}: give a number from 2 to {len(digits.train[0])}, the training images"
        )
    images, classes = digits.train[0][: args.images].unsqueeze(1), digits.train[1][: args.images]
    held_out = digits.val[0].unsqueeze(1), digits.val[1]
    kinds = [(None, 0.0, False), (None, 0.0, True)]
    kinds += [(penalty, weight, True) for weight in args.weights for penalty in PENALTIES]
    arms: list[dict[str, Any]] = [
        {"penalty": penalty, "weight": weight, "connected": connected, "top1": []}
        | ({"half": [], "weakest": [], "small": []} if connected else {})
        for penalty, weight, connected in kinds
    ]
    for seed in tqdm(range(args.seeds), unit="seed", disable=None):
        torch.manual_seed(seed)
        start = timm.create_model(ARCH, num_classes=10, in_chans=1)
        train(start, images, classes, epochs=args.epochs_before, seed=seed)
        for arm in arms:
            model = connect(start, nodes="blocks") if arm["connected"] else copy.deepcopy(start)
            penalty = PENALTIES.get(arm["penalty"])
            train(model, images, classes, epochs=args.epochs, seed=seed, penalty=penalty, weight=arm["weight"])
            arm["top1"].append(accuracy(model, *held_out))
            if arm["connected"]:
                arm["half"].append(accuracy(connectivity.prune(model, keep=0.5, per="node"), *held_out))
                chain, others = map(torch.cat, zip(*map(divided, connectivity.wirings(model).values())))
                arm["weakest"].append(chain.abs().min().item())
                arm["small"].append((others.abs() < SMALL).double().mean().item())
                arm.setdefault("alpha", {"chain": chain.tolist(), "others": others.tolist()})
    return {
        "data": f"{digits.description}; the first {len(images):,} are trained on",
        "settings": {
            **{key: getattr(args, key) for key in ("seeds", "images", "epochs_before", "epochs")},
            "arch": ARCH,
            "optimizer": f"SGD, Nesterov momentum 0.9, lr {LR} with cosine, batch {BATCH}",
        },
        "arms": arms,
    }


def train(
    model: nn.Module,
    images: Tensor,
    classes: Tensor,
    *,
    epochs: int,
    seed: int,
    penalty: Penalty | None = None,
    weight: float = 0.0,
) -> None:
    """Train in place; the order of the images depends on the seed alone."""
    model.train()
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(connectivity.param_groups(model, 5e-4), lr=LR, momentum=0.9, nesterov=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * -(-len(images) // BATCH))
    for _ in range(epochs):
        for batch in torch.randperm(len(images), generator=generator).split(BATCH):
            loss = F.cross_entropy(model(images[batch]), classes[batch])
            loss = loss + weight * penalty(model) if penalty else loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, classes: Tensor) -> float:
    """Return top-1 in percent."""
    return 100 * (model.eval()(images).argmax(dim=1) == classes).double().mean().item()


def divided(wiring: Wiring) -> tuple[Tensor, Tensor]:
    """Return the weights of the edges from a node to the next, and those of all others."""
    chain = torch.tensor([target - source == 1 for source, target in wiring.topology.edges])
    alpha = wiring.alpha.detach()
    return alpha[chain], alpha[~chain]


def table(record: dict[str, Any]) -> str:
    """Return the arms as a Markdown table: means over the seeds, and the paired difference of the two penalties."""
    rows = []
    for arm in record["arms"]:
        cells = [_name(arm), f"{arm['weight']:g}" if arm["connected"] else "", f"{mean(arm['top1']):.1f}"]
        if arm["connected"]:
            cells += [f"{mean(arm['half']):.1f}", f"{mean(arm['weakest']):.2f}", f"{mean(arm['small']):.0%}"]
        rows.append(cells + [""] * (6 - len(cells)))
    lines = [markdown.table(("penalty", "lambda", "top-1", "half of the edges", "weakest of the chain", "small"), rows)]
    arms = {(arm["penalty"], arm["weight"]): arm for arm in record["arms"] if arm["penalty"]}
    rows = []
    for weight in sorted({weight for _, weight in arms}):
        cells = [f"{weight:g}"]
        for measure in ("top1", "half", "weakest", "small"):
            pairs = zip(arms["distance", weight][measure], arms["magnitude", weight][measure])
            found = paired([a - b for a, b in pairs])
            unit = 100 if measure == "small" else 1
            low, high = found.interval
            cells.append(f"{unit * found.mean:+.2f} [{unit * low:+.2f}, {unit * high:+.2f}]")
        rows.append(cells)
    head = ("lambda", "top-1", "half of the edges", "weakest of the chain", "small, percentage points")
    return "\n\n".join([*lines, markdown.table(head, rows)])


def figure(record: dict[str, Any]) -> Figure:
    """Draw the edge weights of the first seed, one row per arm: those of the chain, and those that started at 0."""
    arms = [arm for arm in record["arms"] if arm["connected"]]
    drawn = Figure(figsize=(8.0, 0.55 * len(arms) + 1.2), layout="constrained")
    axis = drawn.subplots()
    for row, arm in enumerate(arms):
        for name, color, label in (
            ("others", "tab:blue", "started at 0"),
            ("chain", "tab:orange", "the chain, started at 1"),
        ):
            values = arm["alpha"][name]
            label = label if row == 0 else None
            axis.plot(values, [row] * len(values), "|", color=color, markersize=9, label=label)
    axis.set_yticks(
        range(len(arms)), [f"{_name(arm)}, {arm['weight']:g}" if arm["penalty"] else _name(arm) for arm in arms]
    )
    axis.invert_yaxis()
    axis.set_xlabel("edge weight alpha after training")
    axis.set_title(f"{record['settings']['arch']}, digits, seed 0: penalty and lambda", fontsize=10)
    axis.grid(axis="x", alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=8, loc="center")
    return drawn


def _name(arm: dict[str, Any]) -> str:
    if not arm["connected"]:
        return "not connected"
    return {None: "none", "magnitude": "on the magnitude", "distance": "on the distance"}[arm["penalty"]]


if __name__ == "__main__":
    sys.exit(main())
