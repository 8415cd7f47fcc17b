"""The hooks under Detectron2's own trainers: plain, mixed precision, two processes."""

from functools import partial

import pytest
import torch
from detectron2.engine import AMPTrainer, HookBase, SimpleTrainer
from detectron2.utils.events import EventStorage
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from tests.detectron2.helpers import metrics, trainable_config
from tests.processes import run_two
from topodet import connectivity
from topodet.detectron2 import AlphaLogHook, SparsityHook, TopoNet, Trainer
from topodet.errors import ConfigError

STEPS = 4


class Task(nn.Module):
    """A backbone with a loss, and the penalty in the loss where `kind` is given."""

    def __init__(self, kind=None, weight=0.01, **backbone):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = TopoNet("toponet_nano", norm="BN", **{"out_features": ["res2", "res3"], **backbone})
        for wiring in connectivity.wirings(self).values():
            nn.init.uniform_(wiring.alpha, -1, 1)
        self.kind = kind
        self.weight = weight

    def forward(self, x):
        losses = {"loss": sum(m.float().square().mean() for m in self.backbone(x).values())}
        if self.kind:
            losses["penalty"] = self.weight * connectivity.penalty(self, self.kind)
        return losses


def run(model, *hooks, trainer_type=SimpleTrainer, steps=STEPS, seed=1):
    torch.manual_seed(seed)
    images = [torch.randn(2, 3, 32, 32) for _ in range(steps)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    trainer = trainer_type(model, images, optimizer)
    trainer.register_hooks(list(hooks))
    trainer.train(0, steps)
    return trainer


@pytest.mark.parametrize("kind", ["uniform", "adaptive"])
def test_the_hook_trains_as_the_penalty_in_the_loss(kind):
    inside, outside = Task(kind), Task()
    run(inside)
    trainer = run(outside, SparsityHook(kind, 0.01))
    for one, two in zip(inside.parameters(), outside.parameters()):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)
    assert not trainer.optimizer._optimizer_step_pre_hooks  # gone after training


def test_with_mixed_precision_and_a_loss_scaler(monkeypatch):
    # Without a GPU Detectron2's trainer refuses to start; torch's own autocast and scaler work on a CPU too.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda.amp, "autocast", partial(torch.autocast, "cpu"))
    scalers = []

    def trainer_type(*args):
        scalers.append(torch.amp.GradScaler("cpu", init_scale=512.0))
        return AMPTrainer(*args, grad_scaler=scalers[-1], precision=torch.bfloat16)

    inside, outside = Task("adaptive"), Task()
    run(inside, trainer_type=trainer_type)
    run(outside, SparsityHook("adaptive", 0.01), trainer_type=trainer_type)
    assert [scaler.get_scale() for scaler in scalers] == [512, 512]  # no step was skipped
    for one, two in zip(inside.parameters(), outside.parameters()):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4)
    alphas = [model.backbone.stages[0].wiring.alpha for model in (inside, outside)]
    torch.testing.assert_close(*alphas, rtol=1e-4, atol=1e-5)


CASES = [(0, ("res2", "res3", "res4", "res5")), (2, ("res3", "res5")), (3, ("res3", "res4"))]  # freeze_at, features


def parallel_steps(rank, address, results):
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    for freeze_at, features in CASES:
        # DDP refuses the second step when a parameter got no gradient in the first.
        model = nn.parallel.DistributedDataParallel(Task(freeze_at=freeze_at, out_features=features))
        trainer = run(model, SparsityHook("adaptive", 0.01), steps=2, seed=rank)
        torch.save(model.module.backbone.stages[-1].wiring.alpha.detach(), results / f"freeze{freeze_at}_{rank}.pt")
        del model, trainer  # a group that is destroyed while they hold it may never end
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_train_together(tmp_path):
    run_two(parallel_steps, tmp_path)
    for freeze_at, features in CASES:
        one, two = (torch.load(tmp_path / f"freeze{freeze_at}_{rank}.pt") for rank in range(2))
        assert torch.equal(one, two)
        before = Task(freeze_at=freeze_at, out_features=features).backbone.stages[-1].wiring.alpha
        assert not torch.equal(one, before)


def test_frozen_edges_stay_as_they_are():
    model = Task(freeze_at=2)
    before = model.backbone.stages[0].wiring.alpha.clone()
    run(model, SparsityHook("adaptive", 0.5))
    assert torch.equal(model.backbone.stages[0].wiring.alpha, before)


@pytest.mark.parametrize(
    ("hook", "model", "words"),
    [
        (SparsityHook("adaptve"), Task(), "unknown sparsity 'adaptve'. Did you mean 'adaptive'"),
        (SparsityHook("uniform", -1.0), Task(), "must not be negative, got -1.0"),
        (SparsityHook("uniform"), Task(edge_weights="fixed"), "without learned edge weights"),
        (SparsityHook("uniform"), Task(freeze_at=3), "edge weights are all frozen"),
    ],
)
def test_wrong_settings_stop_before_the_first_step(hook, model, words):
    class NoStep(HookBase):
        def before_step(self):
            raise AssertionError("a step began")

    with pytest.raises(ConfigError, match=words):
        run(model, hook, NoStep())


def test_the_record_of_the_edges(tmp_path):
    model = Task()
    with torch.no_grad():
        model.backbone.stages[0].wiring.alpha[:3] = 1e-4
    hook = AlphaLogHook(3, thresholds=(0.001, 0.5), folder=tmp_path / "alpha")
    hook.trainer = type("Trainer", (), {"model": model, "start_iter": 0, "max_iter": 4, "iter": 0})
    with EventStorage() as storage:
        hook.before_train()
        for hook.trainer.iter in range(4):
            hook.after_step()
        shares = connectivity.sparsity(model, (0.001, 0.5))
        assert {name: value for name, (value, _) in storage.latest().items()} == {
            f"edges/{name}": pytest.approx(share) for name, share in shares.items()
        }
        assert shares["below_0.001"] == pytest.approx(3 / (6 + 10))
        assert [h["tag"] for h in storage._histograms] == [f"alpha/backbone.stages.{k}.wiring" for k in (0, 1)] * 3
        assert [sum(h["bucket_counts"]) for h in storage._histograms] == [6, 10] * 3
        name, image, _ = storage._vis_data[0]
        assert name == "adjacency"
        assert image.dtype == "uint8"
        assert image.shape[0] == 3
    # Before training, at the period and at the end.
    names = {path.name for path in (tmp_path / "alpha").iterdir()}
    assert names == {f"{kind}_iter000000{k}.png" for kind in ("adjacency", "alpha") for k in (0, 3, 4)}


def test_both_are_in_the_logs_of_a_training(coco, nano, tmp_path):
    config = trainable_config(
        coco,
        tmp_path,
        MODEL__TOPONET__PRETRAINED=str(nano.pth),
        MODEL__TOPONET__SPARSITY="uniform",
        MODEL__TOPONET__SPARSITY_WEIGHT=0.01,
        MODEL__TOPONET__LOG_PERIOD=10,
        SOLVER__MAX_ITER=20,
        DATASETS__TEST=[],
    )
    trainer = Trainer(config)
    trainer.train()
    row = metrics(tmp_path)[-1]
    assert row["sparsity_penalty"] == pytest.approx(0.01 * connectivity.penalty(trainer.model, "uniform").item())
    assert row["edges/below_0.01"] == connectivity.sparsity(trainer.model)["below_0.01"]
    events = EventAccumulator(str(tmp_path), size_guidance={"images": 0, "histograms": 0}).Reload()
    assert events.Tags()["images"] == ["adjacency"]
    assert events.Tags()["histograms"] == [f"alpha/backbone.bottom_up.stages.{k}.wiring" for k in range(4)]
    assert {"sparsity_penalty", "edges/below_0.1"} <= set(events.Tags()["scalars"])
