"""Where a detector spends its multiply-adds, activations and parameters; counted by fvcore, as Detectron2 counts."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.data import transforms
from detectron2.export import TracingAdapter
from detectron2.modeling import build_model
from detectron2.utils.analysis import FlopCountAnalysis
from fvcore.nn import ActivationCountAnalysis, flop_count_table, parameter_count_table
from torch import Tensor, nn

from .. import connectivity
from ..errors import ConfigError
from ..models.wiring import Wiring
from ..ops import WeightedSums
from .config import load_config

__all__ = [
    "NOT_COUNTED",
    "Counts",
    "bottom_up",
    "build_detector",
    "count",
    "parameter_count_table",
    "prepare",
    "synthetic_images",
]

NOT_COUNTED = ("aten::batch_norm", "aten::addcmul")


@dataclass(frozen=True)
class Counts:
    """What images cost a detector.

    Attributes:
        flops: multiply-adds, one entry an image. Convolutions, linear layers and matrix products count, and what else
            fvcore has a formula for (upsampling, group normalisation); batch normalisation, activation functions and
            the weighted sums of a wiring do not, as in the paper's tables.
        operators: mean multiply-adds by kind of operator.
        backbone: mean multiply-adds of the network below the FPN.
        weighted_sums: mean multiply-adds of the weighted sums, one an edge and element, counted apart.
        activations: mean number of elements that convolutions, linear layers and matrix products put out.
        backbone_activations: those of the network below the FPN.
        uncounted: operators without a formula, and how often they ran for the last image.
        table: parameters, multiply-adds and activations by module, for the last image.
    """

    flops: list[float]
    operators: dict[str, float]
    backbone: float
    weighted_sums: float
    activations: float
    backbone_activations: float
    uncounted: dict[str, int]
    table: str


def build_detector(config_file: str | os.PathLike, opts: Sequence[str] = ()) -> tuple[nn.Module, str]:
    """Build a detector from a .yaml or a LazyConfig on the CPU, without a dataset or MODEL.WEIGHTS.

    Args:
        config_file: of the detector.
        opts: KEY VALUE pairs for a .yaml, KEY=VALUE each for a LazyConfig.

    Returns:
        the detector, for inference, and the channel order that it reads.

    Raises:
        ConfigError: no such config, or one of another kind.
    """
    path = Path(config_file)
    if path.suffix not in (".yaml", ".yml", ".py"):
        raise ConfigError(f"--config {path}: a .yaml or a LazyConfig .py is needed")
    if path.suffix != ".py":
        cfg = load_config(path, opts)
        cfg.MODEL.DEVICE = "cpu"
        return build_model(cfg).eval(), cfg.INPUT.FORMAT
    if not path.is_file():
        raise ConfigError(f"no config file at {path} (working folder {Path.cwd()}); check --config")
    wrong = [option for option in opts if "=" not in option]
    if wrong:
        raise ConfigError(f"{wrong[0]}: with a LazyConfig an option is KEY=VALUE")
    config = LazyConfig.apply_overrides(LazyConfig.load(str(path)), list(opts))
    if "model" not in config:
        raise ConfigError(f"{path} has no `model`: it is no LazyConfig of a detector")
    model = instantiate(config.model).cpu().eval()
    return model, getattr(model, "input_format", "BGR")


def bottom_up(model: nn.Module) -> nn.Module:
    """Return a detector's network below the FPN, or its whole backbone if it has none."""
    return getattr(model.backbone, "bottom_up", model.backbone)


def synthetic_images(count: int, height: int, width: int) -> list[Tensor]:
    """Return `count` images of noise, float32 [3, height, width] in 0..255, the same ones at each call."""
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(3, height, width, generator=generator) * 255 for _ in range(count)]


def prepare(image: np.ndarray, *, short_side: int, long_side: int, input_format: str) -> Tensor:
    """Return an RGB image [H, W, 3] uint8 as a detector's input, float32 [3, h, w], resized as Detectron2 does."""
    resize = transforms.ResizeShortestEdge([short_side, short_side], long_side)
    image = resize.get_transform(image).apply_image(image)
    image = image[:, :, ::-1] if input_format == "BGR" else image
    return torch.as_tensor(image.astype("float32").transpose(2, 0, 1))


@torch.no_grad()
def count(model: nn.Module, images: Sequence[Tensor], *, depth: int = 4) -> Counts:
    """Count what images cost a detector.

    The number of proposals and detections depends on image and weights, and with it what the heads cost.

    Args:
        model: a detector, for inference.
        images: at least one, float32 [3, H, W].
        depth: of the modules that the table lists.
    """
    flops, operators, sums = [], Counter(), []
    activations, of_backbone, activations_of_backbone = [], [], []
    # Both counts are of a wrapper around the model.
    inside = "model." + next(name for name, module in model.named_modules() if module is bottom_up(model))
    for image in images:
        # A handle and not None, which fvcore passes over where it has a formula of its own.
        analysis = FlopCountAnalysis(model, [{"image": image}]).set_op_handle(**dict.fromkeys(NOT_COUNTED, _nothing))
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
        with _weighted_sums(model) as edges:
            flops.append(float(analysis.total()))
        sums.append(sum(edges))
        operators.update(analysis.by_operator())
        of_backbone.append(analysis.by_module()[inside])
        wrapper = TracingAdapter(model, [{"image": image}], allow_non_tensor=True)
        outputs = ActivationCountAnalysis(wrapper, wrapper.flattened_inputs)
        outputs.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
        activations.append(outputs.total())
        activations_of_backbone.append(outputs.by_module()[inside])
    return Counts(
        flops=flops,
        operators={name: value / len(images) for name, value in operators.most_common()},
        backbone=float(np.mean(of_backbone)),
        weighted_sums=float(np.mean(sums)),
        activations=float(np.mean(activations)),
        backbone_activations=float(np.mean(activations_of_backbone)),
        uncounted=dict(analysis.unsupported_ops()),
        table=flop_count_table(analysis, max_depth=depth, activations=outputs, show_param_shapes=False),
    )


def _nothing(inputs: list, outputs: list) -> Counter:
    return Counter()


@contextmanager
def _weighted_sums(model: nn.Module) -> Iterator[list[int]]:
    """Yield a list that gets the multiply-adds of each weighted sum when the model runs."""
    counts: list[int] = []

    def counted(wiring: Wiring) -> Callable[[Tensor], WeightedSums]:
        def sums(like: Tensor) -> WeightedSums:
            made = Wiring.sums(wiring, like)
            made.read = read(made.read, wiring.topology.in_degree)
            return made

        return sums

    def read(original: Callable[[int], Tensor], in_degree: Sequence[int]) -> Callable[[int], Tensor]:
        def counting(i: int) -> Tensor:
            total = original(i)
            counts.append(in_degree[i] * int(np.prod([int(n) for n in total.shape])))
            return total

        return counting

    wirings = connectivity.wirings(model).values()
    for wiring in wirings:
        wiring.sums = counted(wiring)
    try:
        yield counts
    finally:
        for wiring in wirings:
            del wiring.sums
