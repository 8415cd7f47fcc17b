"""Multiply-adds, activations and parameters of a detector: the same counts and tables in both frameworks.

The frameworks count by tracing the detector (Detectron2 with fvcore, MMDetection with MMEngine's copy of it).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from .complexity import parameters
from .datasets.images import check_image, read_image
from .errors import ConfigError, unknown_name
from .models.calibrate import calibrate_batchnorm
from .ops import WeightedSums

TASKS = ("flop", "activation", "parameter", "structure")
NOT_COUNTED = ("aten::batch_norm", "aten::addcmul")
PREFIX = "model."  # the detector's name in the traced wrapper


class TraceCounter(Protocol):
    """Common interface of fvcore's and MMEngine's counters."""

    def set_op_handle(self, *args: Any, **handles: Any) -> TraceCounter: ...

    def unsupported_ops_warnings(self, enabled: bool) -> TraceCounter: ...

    def uncalled_modules_warnings(self, enabled: bool) -> TraceCounter: ...

    def tracer_warnings(self, mode: str) -> TraceCounter: ...

    def total(self) -> float: ...

    def by_operator(self) -> Counter[str]: ...

    def by_module(self) -> Counter[str]: ...

    def unsupported_ops(self) -> Counter[str]: ...


# From an image, float32 [C, H, W] in 0..255, to the counters of multiply-adds and of activations.
Counters = Callable[[Tensor], tuple[TraceCounter, TraceCounter]]


@dataclass(frozen=True)
class Counts:
    """The cost of images for a detector.

    Attributes:
        flops: multiply-adds, one entry per image. Counted are convolutions, linear layers, matrix products and other
            operators for which the framework has a formula (upsampling, group normalization), but not batch
            normalization, activation functions and the weighted sums of a wiring, as in the paper's tables.
        operators: mean multiply-adds by kind of operator.
        backbone: mean multiply-adds of the network below the FPN.
        weighted_sums: mean multiply-adds of the weighted sums, one per edge and element, counted separately.
        activations: mean number of output elements of convolutions, linear layers and matrix products.
        backbone_activations: those of the network below the FPN.
        uncounted: operators without a formula, and how often they ran for the last image.
        table: parameters, multiply-adds and activations by module, for the last image.
        sizes: height and width of each image.
    """

    flops: list[float]
    operators: dict[str, float]
    backbone: float
    weighted_sums: float
    activations: float
    backbone_activations: float
    uncounted: dict[str, int]
    table: str
    sizes: list[tuple[int, int]]


@dataclass(frozen=True)
class Analysis:
    """Structure and cost of a detector, as far as requested; see `TASKS`.

    Attributes:
        tasks: contents of `text`.
        structure: the modules.
        parameters: without edge weights.
        edge_weights: number of learned edge weights.
        backbone_parameters: parameters of the network below the FPN, including edge weights.
        parameter_table: parameters by module.
        counts: costs of the images; None unless "flop" or "activation" was requested.
    """

    tasks: tuple[str, ...]
    structure: str
    parameters: int
    edge_weights: int
    backbone_parameters: int
    parameter_table: str
    counts: Counts | None

    def text(self) -> str:
        """Return the requested tables and sums as text."""
        lines = []
        if "structure" in self.tasks:
            lines.append(self.structure)
        if "parameter" in self.tasks:
            part = _share(self.backbone_parameters, self.parameters + self.edge_weights)
            lines += [
                self.parameter_table,
                f"parameters: {self.parameters:,} and {self.edge_weights:,} learned edge weights; "
                f"backbone {self.backbone_parameters:,}, {part} of them",
            ]
        if self.counts:
            height, width = self.counts.sizes[-1]
            lines += [self.counts.table, f"images: {len(self.counts.sizes)}; the table is for {height} x {width}"]
        if "flop" in self.tasks:
            lines += self._flops()
        if "activation" in self.tasks:
            part = _share(self.counts.backbone_activations, self.counts.activations)
            lines.append(f"activations: {self.counts.activations / 1e6:.2f} M; backbone {part}")
        return "\n".join(lines)

    def _flops(self) -> list[str]:
        counts, total = self.counts, float(np.mean(self.counts.flops))
        kinds = ", ".join(f"{name} {value / 1e9:.3f}" for name, value in counts.operators.items() if value)
        lines = [
            f"multiply-adds: {total / 1e9:.3f} +- {np.std(counts.flops) / 1e9:.3f} G ({kinds})",
            f"backbone: {counts.backbone / 1e9:.3f} G, {_share(counts.backbone, total)} of them",
        ]
        if counts.weighted_sums:
            lines.append(f"weighted sums of the backbone, not included: {counts.weighted_sums / 1e9:.3f} G")
        missing = ", ".join(f"{name} x{times}" for name, times in sorted(counts.uncounted.items()))
        return [*lines, f"not counted, because there is no formula: {missing or 'nothing'}"]


def check_request(
    tasks: Sequence[str],
    *,
    size: Sequence[int],
    inputs: Sequence[str | os.PathLike | np.ndarray],
    num_inputs: int,
    depth: int,
) -> list[np.ndarray]:
    """Return the images among `inputs`, RGB [H, W, 3] uint8, before a detector is built.

    Raises:
        ConfigError: an unknown task, no task, a number that is not positive, or an array that is not an image.
        DataError: an image that cannot be read.
    """
    for task in tasks:
        if task not in TASKS:
            raise ConfigError(unknown_name("task", task, TASKS))
    if not tasks or len(size) != 2 or min(num_inputs, depth, *size) < 1:
        raise ConfigError(
            f"tasks must be some of {', '.join(TASKS)}; num_inputs, depth and both values of size must be "
            f"positive, got tasks={list(tasks)}, num_inputs={num_inputs}, depth={depth}, size={tuple(size)}"
        )
    images = [image if isinstance(image, np.ndarray) else read_image(image) for image in inputs]
    for image in images:
        check_image(image)
    return images


def synthetic_images(count: int, height: int, width: int) -> list[Tensor]:
    """Return `count` images of noise, float32 [3, height, width] in 0..255, the same ones at each call."""
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(3, height, width, generator=generator) * 255 for _ in range(count)]


def analyze(
    model: nn.Module,
    bottom_up: nn.Module,
    images: Sequence[Tensor],
    counters: Counters,
    *,
    tasks: Sequence[str] = TASKS,
    depth: int = 4,
    calibrate: Callable[[Tensor], Any] | None = None,
) -> Analysis:
    """Analyze a detector; see `analyze` of the frameworks.

    Args:
        model: the detector in inference mode.
        bottom_up: its network below the FPN.
        images: at least one.
        counters: counters for the model.
        tasks: entries of `TASKS`.
        depth: depth of the modules in the tables.
        calibrate: runs a model with random weights on an image first, to set the batch normalization statistics.
    """
    counts = None
    if {"flop", "activation"} & set(tasks):
        if calibrate is not None:
            calibrate_batchnorm(model, calibrate, images[0])
        counts = count(model, bottom_up, images, counters, depth=depth)
    plain, alphas = parameters(model)
    return Analysis(
        tasks=tuple(tasks),
        structure=str(model),
        parameters=plain,
        edge_weights=alphas,
        backbone_parameters=sum(parameters(bottom_up)),
        parameter_table=table({"parameters": _by_module(model)}, depth),
        counts=counts,
    )


@torch.no_grad()
def count(
    model: nn.Module, bottom_up: nn.Module, images: Sequence[Tensor], counters: Counters, *, depth: int = 4
) -> Counts:
    """Count the cost of images for a detector; the arguments are those of `analyze`.

    The number of proposals and detections, and so the cost of the heads, depends on image and weights.
    """
    flops, operators, sums = [], Counter(), []
    activations, of_backbone, activations_of_backbone = [], [], []
    inside = PREFIX + next(name for name, module in model.named_modules() if module is bottom_up)
    for image in images:
        multiply_adds, outputs = counters(image)
        # A handle, not None: the counters ignore None for operators with a built-in formula.
        multiply_adds.set_op_handle(**dict.fromkeys(NOT_COUNTED, _nothing))
        for counter in (multiply_adds, outputs):
            counter.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
        with _weighted_sums() as edges:
            flops.append(float(multiply_adds.total()))
        sums.append(sum(edges))
        operators.update(multiply_adds.by_operator())
        of_backbone.append(multiply_adds.by_module()[inside])
        activations.append(float(outputs.total()))
        activations_of_backbone.append(outputs.by_module()[inside])
    columns = {
        "parameters": _by_module(model),
        "multiply-adds": _within(multiply_adds.by_module()),
        "activations": _within(outputs.by_module()),
    }
    return Counts(
        flops=flops,
        operators={name: value / len(images) for name, value in operators.most_common()},
        backbone=float(np.mean(of_backbone)),
        weighted_sums=float(np.mean(sums)),
        activations=float(np.mean(activations)),
        backbone_activations=float(np.mean(activations_of_backbone)),
        uncounted=dict(multiply_adds.unsupported_ops()),
        table=table(columns, depth),
        sizes=[tuple(image.shape[-2:]) for image in images],
    )


def table(columns: Mapping[str, Mapping[str, float]], depth: int) -> str:
    """Return numbers by module as lines of text: the whole first, then the modules down to `depth`.

    Args:
        columns: by title, the number of each module, by name; "" is the whole. Modules with only zeros are left out.
        depth: 1 lists the direct parts of the whole.
    """
    names = dict.fromkeys(name for numbers in columns.values() for name in numbers)
    names = [name for name in names if not name or name.count(".") < depth]
    rows = [["module", *columns]]
    for name in names:
        numbers = [values.get(name, 0) for values in columns.values()]
        if any(numbers):
            rows.append([name or "(all)", *map(_rounded, numbers)])
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))])
        for row in rows
    )


def _rounded(number: float) -> str:
    for unit, name in ((1e9, " G"), (1e6, " M"), (1e3, " K")):
        if number >= unit:
            return f"{number / unit:.3f}{name}"
    return f"{number:.0f}"


def _share(part: float, total: float) -> str:
    return f"{part / total:.1%}" if total else "-"


def _by_module(model: nn.Module) -> dict[str, int]:
    return {name: sum(parameters(module)) for name, module in model.named_modules()}


def _within(numbers: Mapping[str, float]) -> dict[str, float]:
    """Return the numbers of the detector's modules from those of the traced wrapper."""
    inside = {name.removeprefix(PREFIX): value for name, value in numbers.items() if name.startswith(PREFIX)}
    return {"": numbers[""], **inside}


def _nothing(inputs: list, outputs: list) -> Counter:
    return Counter()


@contextmanager
def _weighted_sums() -> Iterator[list[int]]:
    """Yield a list that gets the multiply-adds of each weighted sum while it is open."""
    counts: list[int] = []
    original = WeightedSums.read

    def read(sums: WeightedSums, i: int) -> Tensor:
        total = original(sums, i)
        counts.append(len(sums.sources[i]) * int(np.prod([int(n) for n in total.shape])))
        return total

    WeightedSums.read = read
    try:
        yield counts
    finally:
        WeightedSums.read = original
