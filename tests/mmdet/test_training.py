import pytest
import torch
from mmengine.hooks import Hook
from mmengine.optim import LinearLR
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from tests.mmdet.helpers import Task
from topodet.mmdet import TopoNetCheckHook
from topodet.mmdet.training import NO_DECAY, training_problems


class Problems(Hook):
    def before_train(self, runner):
        self.found = training_problems(runner)


def problems(tmp_path, *, model=None, epochs=1, schedule=(), **optim_wrapper):
    """Return what is said of a training of two iterations an epoch, on images that are never read."""
    hook = Problems()
    runner = Runner(
        model or Task(),
        work_dir=str(tmp_path),
        train_dataloader=DataLoader([{"inputs": torch.zeros(3, 32, 32)}] * 2),
        optim_wrapper={"optimizer": {"type": "SGD", "lr": 0.01, "weight_decay": 1e-4}, **optim_wrapper},
        param_scheduler=list(schedule) or None,
        train_cfg={"by_epoch": True, "max_epochs": epochs},
        custom_hooks=[hook, TopoNetCheckHook()],
        experiment_name=str(tmp_path).replace("/", "_"),
    )
    runner.train()
    return hook.found


def linear(end, **options):
    return {"type": "LinearLR", "start_factor": 0.001, "by_epoch": False, "begin": 0, "end": end, **options}


def test_decay_of_edge_weights_is_said_with_the_line_to_write(tmp_path):
    (found,) = problems(tmp_path)
    assert NO_DECAY in found
    assert "2 wirings" in found  # of the two stages
    (log,) = tmp_path.rglob("*.log")
    assert NO_DECAY in log.read_text()  # TopoNetCheckHook says it


def test_the_line_to_write_is_enough(tmp_path):
    written = {}
    exec(NO_DECAY, written)
    assert problems(tmp_path, **written["optim_wrapper"]) == []


def test_edge_weights_that_do_not_learn_are_not_decayed(tmp_path):
    assert problems(tmp_path / "fixed", model=Task(edge_weights="fixed")) == []
    (found,) = problems(tmp_path / "frozen", model=Task(frozen_stages=1))
    assert "1 wirings" in found


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        ([linear(3)], ("takes 3 iterations, but the training ends after 2", "set end=2 in the LinearLR")),
        ([linear(2, by_epoch=True)], ("takes 2 epochs, but the training ends after 1", "remove the LinearLR from")),
        ([linear(1)], ("from 0 to 1 iterations is too short", "the learning rate stays at 0.001", "set end=2")),
        ([linear(2)], ()),
        ([linear(9, start_factor=1.0, end_factor=0.1)], ()),  # a decay that is cut off
    ],
)
def test_a_warmup_longer_than_the_training(schedule, words, tmp_path):
    found = problems(tmp_path, schedule=schedule, paramwise_cfg={"custom_keys": {"wiring.alpha": {"decay_mult": 0.0}}})
    assert len(found) == bool(words)
    assert all(word in found[0] for word in words)


def test_what_mmengine_makes_of_a_warmup_of_one_iteration():
    """Why it is warned of: the first rate stays. With two the second iteration has the whole rate."""
    for end, rates in ((1, [0.001, 0.001, 0.001]), (2, [0.001, 1.0, 1.0])):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        scheduler = LinearLR(optimizer, start_factor=0.001, by_epoch=False, end=end)
        found = []
        for _ in rates:
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        assert found == pytest.approx(rates)
