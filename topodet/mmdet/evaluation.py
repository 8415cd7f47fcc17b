"""A detector's scores as MMDetection computes them, for `connectivity.remove_nodes` and `remove_edges`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mmengine.hooks import EMAHook
from mmengine.runner import Runner
from torch import nn

from ..errors import ConfigError


def coco_evaluation(runner: Runner) -> Callable[[nn.Module], dict[str, float]]:
    """Return a function that evaluates a detector on a runner's validation set: {"bbox/AP": 41.0, ...}, in percent.

        runner = Runner.from_cfg(config)  # with load_from=CHECKPOINT
        evaluate = coco_evaluation(runner)
        damage = connectivity.remove_nodes(runner.model, evaluate)

    Args:
        runner: its checkpoint (`load_from`) is loaded now. The function evaluates the model passed to it, which may be
            another one, e.g. a pruned copy of `runner.model`. With an EMAHook, the checkpoint's weights are the
            averaged ones, and these are loaded and evaluated.

    Raises:
        ConfigError: the config has no validation.
    """
    if runner.val_loop is None:
        raise ConfigError(
            "the config has no val_dataloader, val_cfg and val_evaluator: there is nothing to evaluate on"
        )
    with _without_average(runner):
        runner.load_or_resume()

    def evaluate(model: nn.Module) -> dict[str, float]:
        before, runner.model = runner.model, model
        try:
            with _without_average(runner):
                return dict(_in_percent(name, value) for name, value in runner.val_loop.run().items())
        finally:
            runner.model = before

    return evaluate


@contextmanager
def _without_average(runner: Runner) -> Iterator[None]:
    """Disable EMAHook, which would replace the model's weights by its own average."""
    hooks, runner._hooks = runner._hooks, [hook for hook in runner._hooks if not isinstance(hook, EMAHook)]
    try:
        yield
    finally:
        runner._hooks = hooks


def _in_percent(name: str, value: float) -> tuple[str, float]:
    """Return a score of MMDetection's CocoMetric as Detectron2 names and scales it: NaN if there is no object."""
    match = re.fullmatch(r"coco/(bbox|segm)_mAP(?:_(50|75|s|m|l))?", name)
    if match is None:
        return name, value
    return f"{match[1]}/AP{match[2] or ''}", 100 * value if value >= 0 else float("nan")
