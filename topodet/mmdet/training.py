"""Warnings at the start for settings of a training config that are probably mistakes, with the line to write."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmengine.optim import LinearParamScheduler, OptimWrapperDict
from mmengine.runner import Runner
from torch.optim import Optimizer

from .. import connectivity

NO_DECAY = 'optim_wrapper = dict(paramwise_cfg=dict(custom_keys={"wiring.alpha": dict(decay_mult=0.0)}))'


def training_problems(runner: Runner) -> list[str]:
    """Return a sentence for each setting that is probably a mistake.

    These are weight decay on learned edge weights, which pulls them to 0 without any penalty, and a warm-up that is
    longer than the training, which never reaches its learning rate. (A backbone that is frozen at random weights warns
    itself.)
    """
    return [*_decayed_edges(runner), *_long_warmups(runner)]


def _decayed_edges(runner: Runner) -> Iterator[str]:
    edges = {id(wiring.alpha): name for name, wiring in connectivity.wirings(runner.model).items()}
    decayed = [
        edges[id(parameter)]
        for optimizer in _optimizers(runner.optim_wrapper)
        for group in optimizer.param_groups
        for parameter in group["params"]
        if id(parameter) in edges and parameter.requires_grad and group.get("weight_decay")
    ]
    if decayed:
        yield (
            f"weight decay pulls the edge weights of {len(decayed)} wirings to 0 ({decayed[0]}.alpha, ...), which is "
            f"an additional penalty; add to the config: {NO_DECAY}"
        )


def _optimizers(wrapper: Any) -> Iterator[Optimizer]:
    wrappers = wrapper.values() if isinstance(wrapper, OptimWrapperDict) else [wrapper]
    yield from (each.optimizer for each in wrappers)


def _long_warmups(runner: Runner) -> Iterator[str]:
    schedulers = runner.param_schedulers or []
    lists = schedulers.values() if isinstance(schedulers, dict) else [schedulers]
    for scheduler in (each for schedulers in lists for each in schedulers):
        if not isinstance(scheduler, LinearParamScheduler) or scheduler.start_factor >= scheduler.end_factor:
            continue
        unit, length = ("epochs", runner.max_epochs) if scheduler.by_epoch else ("iterations", runner.max_iters)
        name = type(scheduler).__name__
        remedy = f"set end={max(2, length // 5)} in the {name} of param_scheduler"
        if length < 2:
            remedy = f"remove the {name} from param_scheduler"
        if scheduler.end > length:
            yield (
                f"the warm-up takes {scheduler.end} {unit}, but the training ends after {length}: it never reaches its "
                f"learning rate; {remedy}"
            )
        elif scheduler.total_iters < 1:
            yield (
                f"the warm-up from {scheduler.begin} to {scheduler.end} {unit} is too short for MMEngine, which needs "
                f"two: the learning rate stays at {scheduler.start_factor:g} of its value; {remedy}"
            )
