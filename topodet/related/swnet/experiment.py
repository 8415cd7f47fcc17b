"""Does a network converge faster as a small world? The question of arXiv 1904.04862, on digits or on arrays of images.

A CNN and its SWNets with several p are trained from the same seeds: the same initial weights, for unmoved kernels, and
the same order of images. The result is the number of iterations to an accuracy.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from timm.models.resnet import BasicBlock, ResNet
from torch import Tensor, nn

from ... import complexity
from ...datasets.digits import Digits
from ...datasets.npz import read_npz
from ...errors import ConfigError, DataError, unknown_name
from .figures import draw_small_world
from .model import channel_graph, swnet
from .small_world import small_world
from .sweep import MAX_S, SmallWorldSweep, small_world_sweep

Results = dict[str, Any]
Images = tuple[Tensor, Tensor]

LR = 0.05


@dataclass(frozen=True)
class Task:
    """Training images and settings.

    Args:
        description: description of the data.
        train, val: images, float32 [N, C, H, W], and classes, int64 [N].
        num_classes: number of classes.
        widths: widths of the layers of the `plain` network; "M" halves the resolution.
        stages: widths of the stages of the `resnet`.
        stem_stride: stride of the first convolution of both.
        targets: accuracies to reach.
        iterations, batch, every: settings of training; the accuracy is measured every `every` iterations.
    """

    description: str
    train: Images
    val: Images
    num_classes: int
    widths: tuple[int | str, ...]
    stages: tuple[int, ...]
    stem_stride: int
    targets: tuple[float, ...]
    iterations: int
    every: int
    batch: int = 64

    @property
    def image(self) -> tuple[int, int, int]:
        """Channels and pixels of an image."""
        return tuple(self.train[0].shape[1:])


def digits() -> Task:
    """Return the task of scikit-learn's digits, 8 x 8.

    Raises:
        DataError: scikit-learn is not installed.
    """
    data = Digits()
    train, val = ((images[:, None], classes) for images, classes in (data.train, data.val))
    widths = (8, 8, 8, 8, "M", 16, 16, 16, "M", 32, 32)
    return Task(data.description, train, val, 10, widths, (8, 16, 32), 1, (0.8, 0.9, 0.95), iterations=200, every=5)


def arrays(folder: str | Path, *, num_classes: int = 10) -> Task:
    """Return the task of the first classes of `folder`'s train.npz and validation.npz.

    Args:
        folder: folder of two files with `images`, uint8 [N, H, W, C], and `labels`, integers [N] from 0.
        num_classes: number of classes to use; images of others are left out.

    Raises:
        DataError: a file is missing or damaged, or contains something else, or there are fewer classes.
    """
    parts = []
    for split in ("train", "validation"):
        path = Path(folder) / f"{split}.npz"
        arrays = read_npz(path, ("images", "labels"))
        images, labels = arrays["images"], arrays["labels"]
        if images.ndim != 4 or images.dtype != np.uint8 or labels.shape != images.shape[:1]:
            raise DataError(
                f"{path}: images must be uint8 [N, H, W, C] and labels [N], got {images.dtype} "
                f"{list(images.shape)} and {list(labels.shape)}"
            )
        kept = np.flatnonzero((labels >= 0) & (labels < num_classes))
        found = len(np.unique(labels[kept]))
        if found < num_classes:
            raise DataError(f"{path} has images of only {found} of the first {num_classes} classes")
        pixels = torch.from_numpy(images[kept]).permute(0, 3, 1, 2).float().div(255).contiguous()
        parts.append((pixels, torch.from_numpy(labels[kept].astype(np.int64))))
    train, val = parts
    mean, std = train[0].mean((0, 2, 3), keepdim=True), train[0].std((0, 2, 3), keepdim=True)
    train, val = (((images - mean) / std, labels) for images, labels in parts)
    name = Path(folder).resolve().name
    description = f"{name}, its first {num_classes} classes: {len(train[0]):,} train and {len(val[0]):,} val images"
    widths = (16, 16, 16, 16, "M", 32, 32, 32, "M", 64, 64, 64)
    targets = (0.3, 0.4, 0.45)
    return Task(description, train, val, num_classes, widths, (16, 32, 64), 2, targets, iterations=240, every=20)


def plain(task: Task) -> nn.Module:
    """Make a VGG-like network: 3x3 convolutions, each with normalization and ReLU, without shortcuts."""
    layers: list[nn.Module] = []
    channels, stride = task.image[0], task.stem_stride
    for width in task.widths:
        if width == "M":
            layers.append(nn.MaxPool2d(2))
            continue
        conv = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        layers += [conv, nn.BatchNorm2d(width), nn.ReLU()]
        channels, stride = width, 1
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, task.num_classes))


def resnet(task: Task) -> nn.Module:
    """Make timm's ResNet-D with one BasicBlock in each of three stages, without its pooling."""
    options = {"in_chans": task.image[0], "num_classes": task.num_classes}
    widths = {"channels": (*task.stages, task.stages[-1]), "stem_width": task.stages[0] // 2}
    model = ResNet(BasicBlock, (1, 1, 1, 1), stem_type="deep", **widths, **options)
    model.conv1[0].stride = (task.stem_stride, task.stem_stride)
    model.maxpool = model.layer4 = nn.Identity()
    return model


NETWORKS: dict[str, Callable[[Task], nn.Module]] = {"plain": plain, "resnet": resnet}


def run(
    task: Task,
    networks: Sequence[str] = tuple(NETWORKS),
    *,
    ps: Sequence[float | str] = (MAX_S,),
    seeds: int = 3,
    first_seed: int = 0,
    progress: Callable[[list], Any] = list,
) -> Results:
    """Train every network in its original and retargeted forms.

    Args:
        task: `digits()`, `arrays(folder)`, or either with other settings.
        networks: names in `NETWORKS`.
        ps: arguments of `SmallWorldSweep.choose`.
        seeds, first_seed: seeds of each network, for weights, retargeting and the order of the images.
        progress: wraps the list of runs, for example tqdm.

    Returns:
        "data", "settings" and "networks": for each the "sweep" over p with the p of largest S, and "runs", the first
        of them the original (p = 0), with kernels, parameters, multiply-adds, accuracies by seed and by iteration, and
        by target the iterations of each seed (None: not reached) and the speed-up, see `speedup`.

    Raises:
        ConfigError: an unknown network, no seed, an invalid p, no iteration to measure after, or an invalid target
            accuracy.
    """
    for name in networks:
        if name not in NETWORKS:
            raise ConfigError(unknown_name("network", name, NETWORKS))
    if seeds < 1:
        raise ConfigError(f"the experiment needs at least 1 seed, got {seeds}")
    if not 1 <= task.every <= task.iterations:
        raise ConfigError(f"accuracy is measured every {task.every} of {task.iterations} iterations: that is never")
    for target in task.targets:
        if not 0 < target <= 1:
            raise ConfigError(f"target {target} is not an accuracy: give a share, such as 0.9")
    sweeps = {name: _sweep(NETWORKS[name](task), task) for name in networks}
    chosen = {name: list(dict.fromkeys([0.0, *map(sweep.choose, ps)])) for name, sweep in sweeps.items()}
    made: dict[tuple[str, float], list[Results]] = {}
    numbers = range(first_seed, first_seed + seeds)
    for name, p, seed in progress([(n, p, s) for n in networks for p in chosen[n] for s in numbers]):
        made.setdefault((name, p), []).append(_train(task, name, p, seed))
    return {
        "data": task.description,
        "settings": {
            "seeds": seeds,
            "first_seed": first_seed,
            "optimizer": f"SGD, Nesterov momentum 0.9, constant lr {LR}, batch {task.batch}",
            "iterations": task.iterations,
            "every": task.every,
            "targets": list(task.targets),
            "widths": list(task.widths),
            "stages": list(task.stages),
        },
        "networks": {
            name: {
                "sweep": {
                    "best": sweeps[name].best,
                    "ps": list(sweeps[name].ps),
                    "worlds": [
                        {**asdict(world), "small_worldness": world.small_worldness} for world in sweeps[name].worlds
                    ],
                },
                "runs": [_run(p, made[name, p], made[name, 0.0], task) for p in chosen[name]],
            }
            for name in networks
        },
    }


def iterations_to(accuracies: Sequence[float], target: float, every: int) -> int | None:
    """Return the number of iterations until the measured accuracy reaches the target; None if it never does."""
    return next((every * k for k, accuracy in enumerate(accuracies, 1) if accuracy >= target), None)


def speedup(baseline: Sequence[int | None], iterations: Sequence[int | None]) -> float | None:
    """Return mean iterations of the baseline divided by the SWNet's, over all seeds; None if one never reached it."""
    if None in baseline or None in iterations:
        return None
    return statistics.mean(baseline) / statistics.mean(iterations)


def table(results: Results) -> str:
    """Return the runs as a Markdown table: mean last accuracy, and by target mean iterations and speed-up."""
    settings = results["settings"]
    targets = [f"to {target:g}" for target in settings["targets"]]
    head = ("network", "p", "S", "kernels", "multiply-adds", "last accuracy", *targets)
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for name, network in results["networks"].items():
        for row in network["runs"]:
            last = statistics.mean(curve[-1] for curve in row["accuracies"])
            cells = [name, f"{row['p']:g}", f"{row['small_worldness']:.2f}"]
            cells += [f"{row['kernels']:,}", f"{row['multiply_adds'] / 1e6:.2f}M", f"{last:.3f}"]
            for target in row["targets"]:
                reached = [number for number in target["iterations"] if number is not None]
                text = f"{statistics.mean(reached):.0f}" if len(reached) == settings["seeds"] else "-"
                if len(reached) < settings["seeds"]:
                    text += f" ({len(reached)} of {settings['seeds']})"
                elif row["p"] and target["speedup"] is not None:
                    text += f" ({target['speedup']:.2f}x)"
                cells.append(text)
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def figure(results: Results) -> Figure:
    """Draw for each network, in a row: the sweep over p, accuracy over iterations, and speed-up over p."""
    networks = results["networks"]
    drawn = Figure(figsize=(11.5, 3.4 * len(networks)), layout="constrained")
    for axes, (name, network) in zip(drawn.subplots(len(networks), 3, squeeze=False), networks.items()):
        sweep = network["sweep"]
        draw_small_world(axes[0], sweep["ps"], sweep["worlds"], chosen=sweep["best"])
        axes[0].set_title(name, fontsize=10)
        runs, settings = sorted(network["runs"], key=lambda row: row["p"]), results["settings"]
        steps = settings["every"] * np.arange(1, len(runs[0]["accuracies"][0]) + 1)
        for k, row in enumerate(runs):
            curves = np.array(row["accuracies"])
            # Markers in addition to colors, for grayscale.
            style = {"color": f"C{k}", "marker": "os^vD"[k % 5], "markersize": 3, "linewidth": 1.2}
            axes[1].plot(steps, curves.mean(0), label=f"p = {row['p']:g}", **style)
            axes[1].fill_between(steps, curves.min(0), curves.max(0), color=style["color"], alpha=0.1, linewidth=0)
        axes[1].set_xlabel("iterations")
        axes[1].set_ylabel(f"accuracy, mean and range of {settings['seeds']} seeds")
        axes[1].set_ylim(bottom=0)
        axes[1].legend(frameon=False, fontsize=8)
        for k, target in enumerate(settings["targets"]):
            points = [(row["p"], row["targets"][k]["speedup"]) for row in runs]
            points = [(p, times) for p, times in points if times is not None]
            axes[2].plot(
                *zip(*points or [(np.nan, np.nan)]), marker="os^v"[k % 4], color="0.25", label=f"to {target:g}"
            )
        axes[2].axhline(1, color="0.6", linewidth=0.8)
        axes[2].set_xlim(-0.03, 1.03)
        axes[2].set_xlabel("p")
        axes[2].set_ylabel("speed-up, in iterations")
        axes[2].legend(frameon=False, fontsize=8)
        for axis in axes[1:]:
            axis.spines[["top", "right"]].set_visible(False)
            axis.grid(alpha=0.3)
    return drawn


def _run(p: float, singles: Sequence[Results], baseline: Sequence[Results], task: Task) -> Results:
    """Combine the seeds of one p: lists of their results, means of their properties."""
    curves, original = ([single["accuracies"] for single in part] for part in (singles, baseline))
    targets = []
    for target in task.targets:
        ours, theirs = ([iterations_to(curve, target, task.every) for curve in part] for part in (curves, original))
        targets.append({"target": target, "iterations": ours, "speedup": speedup(theirs, ours)})
    means = {key: statistics.mean(single[key] for single in singles) for key in ("small_worldness", "multiply_adds")}
    alike = {key: singles[0][key] for key in ("kernels", "parameters")}
    seconds = [single["seconds"] for single in singles]
    return {"p": p, **means, **alike, "seconds": seconds, "targets": targets, "accuracies": curves}


def _sweep(model: nn.Module, task: Task) -> SmallWorldSweep:
    return small_world_sweep(model, image_size=task.image[-1])


def _train(task: Task, name: str, p: float, seed: int) -> Results:
    """Train one network; return its counts and its accuracies by measurement."""
    torch.manual_seed(seed)
    model = NETWORKS[name](task)
    graph = channel_graph(model, image_size=task.image[-1])
    if p:
        model = swnet(model, p=p, seed=seed, image_size=task.image[-1])
        graph = channel_graph(model)
    world = small_world(graph.edges, num_nodes=graph.num_nodes)
    images, classes = task.train
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9, nesterov=True)
    order = torch.Generator().manual_seed(seed)
    accuracies, batches, began = [], iter(()), time.perf_counter()
    for step in range(1, task.iterations + 1):
        batch = next(batches, None)
        if batch is None:
            # Only whole batches, so that all iterations cost the same.
            batches = iter(torch.randperm(len(images), generator=order).split(task.batch)[: len(images) // task.batch])
            batch = next(batches)
        loss = F.cross_entropy(model.train()(images[batch]), classes[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % task.every == 0:
            accuracies.append(_accuracy(model, *task.val))
    return {
        "small_worldness": world.small_worldness,
        "kernels": graph.num_edges,
        "parameters": complexity.parameters(model)[0],
        "multiply_adds": complexity.multiply_adds(model, task.image),
        "seconds": time.perf_counter() - began,  # including the evaluations
        "accuracies": accuracies,
    }


@torch.no_grad()
def _accuracy(model: nn.Module, images: Tensor, classes: Tensor) -> float:
    model.eval()
    found = torch.cat([model(part).argmax(1) for part in images.split(256)])
    return (found == classes).double().mean().item()
