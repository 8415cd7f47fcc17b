#!/usr/bin/env python
"""Train many sparse networks on handwritten digits: how much do they differ, and are they as good as dense ones?

    python tools/sparse_topologies.py --output runs/sparse_topologies
    python tools/sparse_topologies.py --record sparse_topologies_digits

The question of "Topological Insights into Sparse Neural Networks" (ECML-PKDD 2020, arXiv 2006.14085), on scikit-learn's
8x8 digits: perceptrons of three hidden layers, dense, sparse with fixed links, and sparse with links that evolve (SET),
from the same seeds. Writes a record with the accuracies and all distances (NNSTD), and a heat map.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from tqdm import tqdm

from topodet.datasets.digits import split_digits
from topodet.errors import ConfigError, exit_status
from topodet.files import atomic_path
from topodet.records import runs
from topodet.related.nnstd.networks import Distances, distance_figure, distances
from topodet.related.nnstd.set import SET

ROOT = Path(__file__).resolve().parents[1]
KIND = "sparse_topologies"
NETWORKS = {"dense": None, "sparse, links stay": 0.0, "sparse, SET": 0.3}  # and their zeta


def main(argv: list[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else argv
    return exit_status(run, parser().parse_args(words), words)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = made.add_argument
    add("--networks", type=int, default=8, metavar="N", help="networks of each kind, with consecutive seeds")
    add("--first-seed", type=int, default=0, metavar="SEED", help="seed of the first one (default: %(default)s)")
    add("--widths", type=int, nargs="+", default=[256, 256, 256], metavar="W", help="neurons of each hidden layer")
    add("--epsilon", type=float, default=10.0, help="density of the links, see topodet.related.nnstd.SET")
    add("--epochs", type=int, default=60, help="epochs of training (default: %(default)s)")
    add(
        "--compare-at",
        type=int,
        nargs="+",
        default=[0, 10, 60],
        metavar="EPOCH",
        help="epochs at which networks are compared; 0 is before training",
    )
    add("--lr", type=float, default=0.05, help="learning rate (default: %(default)s)")
    add("--momentum", type=float, default=0.9, help="momentum (default: %(default)s)")
    add("--weight-decay", type=float, default=2e-4, help="weight decay (default: %(default)s)")
    add("--batch", type=int, default=32, help="batch size (default: %(default)s)")
    add("--output", type=Path, default=ROOT / "runs" / "sparse_topologies", help="folder for record and heat map")
    add("--json", type=Path, metavar="FILE", help="write the record to this file instead, with the heat map beside it")
    add("--record", metavar="NAME", help="write records/experiments/NAME.json and docs/NAME.png instead")
    return made


def run(args: argparse.Namespace, words: list[str]) -> None:
    if args.networks < 2 or not 0 <= min(args.compare_at) <= max(args.compare_at) <= args.epochs:
        raise ConfigError(
            f"--networks {args.networks} --compare-at {args.compare_at}: give two networks or more, and epochs from 0 "
            f"to --epochs {args.epochs}"
        )
    torch.set_num_threads(1)  # the networks are too small for more
    results, matrix = experiment(args)
    name = args.record or (args.json.stem if args.json else "sparse_topologies")
    command = f"python tools/sparse_topologies.py {shlex.join(words)}".rstrip()
    packages = ("numpy", "scipy", "scikit-learn")
    record = runs.record_experiment(results, name=name, command=command, kind=KIND, packages=packages)
    output = args.json.parent if args.json else args.output
    folder, pictures = (ROOT / "records" / "experiments", ROOT / "docs") if args.record else (output, output)
    figure = distance_figure(matrix, title="network, at epoch", block=len(args.compare_at))
    with atomic_path(pictures / f"{name}.png") as temporary:
        figure.savefig(temporary, format="png", dpi=130)
    print(tables(record))
    print(f"\n{runs.save_as(record, folder)}\n{pictures / f'{name}.png'}")


def experiment(args: argparse.Namespace) -> tuple[dict[str, Any], Distances]:
    """Train all networks and compare the evolving ones; return the content of the record, and the distances."""
    images, classes = (torch.from_numpy(part) for part in load_digits(return_X_y=True))
    images = (images / 16).float()
    sets = [(images[chosen], classes[chosen]) for chosen in map(torch.from_numpy, split_digits())]
    accuracies: dict[str, list[float]] = {kind: [] for kind in NETWORKS}
    weights: dict[str, list[int]] = {kind: [] for kind in NETWORKS}
    masks: dict[str, dict[str, Tensor]] = {}
    total = len(NETWORKS) * args.networks * args.epochs
    with tqdm(total=total, desc="training", unit="epoch", leave=False, disable=None) as progress:
        for kind, zeta in NETWORKS.items():
            for seed in range(args.first_seed, args.first_seed + args.networks):
                model, kept = train(sets[0], args, seed, zeta, progress)
                accuracies[kind].append(accuracy(model, *sets[1]))
                weights[kind].append(sum(int(part.weight.count_nonzero()) for part in model if hasattr(part, "weight")))
                if zeta:
                    masks |= {f"{seed}, {epoch}": links for epoch, links in kept.items()}
    classifier = f"{2 * len(args.widths)}.weight"
    matrix = distances(masks, fixed_outputs=classifier in next(iter(masks.values())))
    settings = {key: value for key, value in vars(args).items() if key not in ("output", "record", "json")}
    seeds = range(args.first_seed, args.first_seed + args.networks)
    place = {label: k for k, label in enumerate(matrix.labels)}
    between = {
        str(epoch): float(
            np.mean([matrix.layers[place[f"{i}, {epoch}"], place[f"{j}, {epoch}"]] for i, j in combinations(seeds, 2)])
        )
        for epoch in args.compare_at
    }
    results = {
        "settings": {**settings, "images": [len(part[1]) for part in sets]},
        "networks": {kind: {"accuracies": accuracies[kind], "weights": weights[kind]} for kind in NETWORKS},
        "between": between,  # mean distance of two networks at each epoch
        "distances": {
            "labels": list(matrix.labels),
            "layers": list(matrix.names),
            "values": matrix.layers.round(4).tolist(),
        },
    }
    return results, matrix


def train(
    data: tuple[Tensor, Tensor], args: argparse.Namespace, seed: int, zeta: float | None, progress: tqdm
) -> tuple[nn.Module, dict[int, dict[str, Tensor]]]:
    """Train one network; return it, and its links at the epochs that are compared."""
    torch.manual_seed(seed)
    sizes = (data[0].shape[1], *args.widths, 10)
    layers = [part for n_in, n_out in pairwise(sizes) for part in (nn.Linear(n_in, n_out), nn.ReLU())]
    model = nn.Sequential(*layers[:-1])
    for layer in model[::2]:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(layer.bias)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=args.lr, momentum=args.momentum, weight_decay=args.weight_decay, nesterov=True
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs)
    evolution = None if zeta is None else SET(model, optimizer, epsilon=args.epsilon, zeta=zeta, seed=seed)
    kept = {}
    for epoch in range(args.epochs + 1):
        if epoch:
            if evolution and epoch > 1:
                evolution.evolve()
            for chosen in torch.randperm(len(data[0])).split(args.batch):
                optimizer.zero_grad()
                F.cross_entropy(model(data[0][chosen]), data[1][chosen]).backward()
                optimizer.step()
            schedule.step()
            progress.update()
        if evolution and epoch in args.compare_at:
            kept[epoch] = {name: mask.clone() for name, mask in evolution.masks.items()}
    return model, kept


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, classes: Tensor) -> float:
    """Return the accuracy in percent."""
    return 100 * (model(images).argmax(dim=1) == classes).double().mean().item()


def tables(record: dict[str, Any]) -> str:
    """Return the tables of a record as Markdown: accuracies, and distances among the evolving networks."""
    lines = ["| networks | number | weights | accuracy, % | lowest and highest |", "| --- | --- | --- | --- | --- |"]
    for kind, found in record["networks"].items():
        scores = np.array(found["accuracies"])
        spread = f"{scores.mean():.2f} ± {scores.std(ddof=1):.2f}"
        weights = f"{np.mean(found['weights']):,.0f}"
        lines.append(f"| {kind} | {len(scores)} | {weights} | {spread} | {scores.min():.2f} and {scores.max():.2f} |")
    layers = record["distances"]["layers"]
    lines += ["", f"| distance | {' | '.join(f'layer {name}' for name in layers)} | mean | least | greatest |"]
    lines.append("| --- " * (len(layers) + 4) + "|")
    values = np.array(record["distances"]["values"])
    epochs = record["settings"]["compare_at"]
    place = {label: k for k, label in enumerate(record["distances"]["labels"])}
    first = record["settings"].get("first_seed", 0)
    seeds = range(first, first + record["settings"]["networks"])
    rows = {
        f"two networks at epoch {epoch}": [
            (place[f"{i}, {epoch}"], place[f"{j}, {epoch}"]) for i, j in combinations(seeds, 2)
        ]
        for epoch in epochs
    }
    for first, last in combinations(epochs, 2):
        rows[f"a network, epochs {first} and {last}"] = [(place[f"{i}, {first}"], place[f"{i}, {last}"]) for i in seeds]
    for what, pairs in rows.items():
        found = np.array([values[pair] for pair in pairs])
        means = found.mean(axis=1)
        cells = [*found.mean(axis=0), means.mean(), means.min(), means.max()]
        lines.append(f"| {what} | {' | '.join(f'{value:.3f}' for value in cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
