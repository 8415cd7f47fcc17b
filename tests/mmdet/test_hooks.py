import json

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.optim.optimizer import amp_optimizer_wrapper
from mmengine.runner import Runner
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader

from tests.mmdet.helpers import Task, visualizer
from topodet import connectivity
from topodet.errors import ConfigError
from topodet.mmdet import AlphaLogHook, SparsityHook

STEPS = 4


class CountPreHooks(Hook):
    def __init__(self):
        self.counts = []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.counts.append(len(runner.optim_wrapper.optimizer._optimizer_step_pre_hooks))


def run(model, work_dir, hooks=(), wrapper=OptimWrapper, train_cfg=None, **options):
    torch.manual_seed(1)
    images = [torch.randn(3, 32, 32) for _ in range(2 * STEPS)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    more = {name: options.pop(name) for name in ("accumulative_counts", "dtype") if name in options}
    runner = Runner(
        model,
        work_dir=str(work_dir),
        train_dataloader=DataLoader([{"inputs": image} for image in images], batch_size=2),
        optim_wrapper=wrapper(optimizer=optimizer, **more),
        train_cfg=train_cfg or {"by_epoch": True, "max_epochs": 1},
        custom_hooks=list(hooks),
        default_hooks={
            "checkpoint": {"type": "CheckpointHook", "interval": 1},
            "logger": {"type": "LoggerHook", "interval": 2},
        },
        experiment_name=str(work_dir).replace("/", "_"),
        **options,
    )
    runner.train()
    return runner


def pair(kind, weight=0.01, **backbone):
    """The same network twice: the penalty in the loss, and left to the hook."""
    inside, outside = Task(kind, weight, **backbone), Task(**backbone)
    for alpha in (p for name, p in inside.named_parameters() if name.endswith("alpha")):
        torch.nn.init.uniform_(alpha, -1, 1)
    outside.load_state_dict(inside.state_dict())
    return inside, outside


@pytest.mark.parametrize("kind", ["uniform", "adaptive"])
@pytest.mark.parametrize("accumulative_counts", [1, 2, 3])
def test_the_hook_trains_as_the_penalty_in_the_loss(kind, accumulative_counts, tmp_path):
    inside, outside = pair(kind)
    run(inside, tmp_path / "inside", accumulative_counts=accumulative_counts)
    run(outside, tmp_path / "outside", [SparsityHook(kind, 0.01)], accumulative_counts=accumulative_counts)
    for one, two in zip(inside.parameters(), outside.parameters()):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)


def test_with_mixed_precision_and_a_loss_scaler(tmp_path, monkeypatch):
    # Without a GPU MMEngine's wrapper refuses to start, and its scaler would do nothing; torch's own works here.
    monkeypatch.setattr(amp_optimizer_wrapper, "is_cuda_available", lambda: True)
    monkeypatch.setattr(amp_optimizer_wrapper, "GradScaler", lambda: torch.amp.GradScaler("cpu", init_scale=512.0))
    inside, outside = pair("adaptive")
    options = {"wrapper": AmpOptimWrapper, "dtype": "bfloat16", "accumulative_counts": 2}
    run(inside, tmp_path / "inside", **options)
    runner = run(outside, tmp_path / "outside", [SparsityHook("adaptive", 0.01)], **options)
    assert runner.optim_wrapper.loss_scaler.get_scale() == 512  # no step was skipped
    for one, two in zip(inside.parameters(), outside.parameters()):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4)
    alphas = [model.backbone.stages[0].wiring.alpha for model in (inside, outside)]
    torch.testing.assert_close(*alphas, rtol=1e-4, atol=1e-5)


def test_added_once_also_after_resuming(tmp_path):
    counter = CountPreHooks()
    _, model = pair("uniform")
    hook = SparsityHook("uniform", 0.01)
    runner = run(model, tmp_path, [hook, counter])
    assert not runner.optim_wrapper.optimizer._optimizer_step_pre_hooks
    train_cfg = {"by_epoch": True, "max_epochs": 2}
    run(model, tmp_path, [hook, counter], train_cfg=train_cfg, resume=True)
    assert counter.counts == [1] * (2 * STEPS)


def test_the_penalty_is_in_the_log(tmp_path):
    _, model = pair("uniform")
    runner = run(model, tmp_path, [SparsityHook("uniform", 0.01)])
    value = 0.01 * connectivity.penalty(model, "uniform").item()
    assert runner.message_hub.get_scalar("train/sparsity_penalty").current() == pytest.approx(value)
    assert "sparsity_penalty: " in next(tmp_path.glob("*/*.log")).read_text()


def test_frozen_edges_stay_as_they_are(tmp_path):
    _, model = pair("adaptive", frozen_stages=1)
    before = model.backbone.stages[0].wiring.alpha.clone()
    run(model, tmp_path, [SparsityHook("adaptive", 0.5)])
    assert torch.equal(model.backbone.stages[0].wiring.alpha, before)


@pytest.mark.parametrize(
    ("hook", "backbone", "message"),
    [
        (SparsityHook("adaptiv"), {}, "Did you mean 'adaptive'"),
        (SparsityHook("uniform", -1.0), {}, "must not be negative"),
        (SparsityHook("uniform"), {"edge_weights": "fixed"}, "without learned edge weights"),
        (SparsityHook("uniform"), {"frozen_stages": 2}, "edge weights are all frozen"),
    ],
)
def test_refuses_what_cannot_be_penalised(hook, backbone, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        run(Task(**backbone), tmp_path, [hook])


def test_edges_are_recorded_by_epoch(tmp_path):
    _, model = pair("uniform")
    with torch.no_grad():
        model.backbone.stages[0].wiring.alpha.zero_()
    train_cfg = {"by_epoch": True, "max_epochs": 3}
    run(model, tmp_path, [AlphaLogHook(interval=2, thresholds=(0.5,))], train_cfg=train_cfg, visualizer=visualizer())
    assert sorted(p.name for p in (tmp_path / "alpha").iterdir()) == [
        "adjacency_epoch000.png",
        "adjacency_epoch002.png",
        "alpha_epoch000.png",
        "alpha_epoch002.png",
    ]
    rows = [json.loads(line) for line in next(tmp_path.glob("*/vis_data/scalars.json")).read_text().splitlines()]
    rows = [row for row in rows if "edges/below_0.5" in row]
    assert [row["step"] for row in rows] == [0, 2 * STEPS]
    # The first stage has 6 edges, all of weight 0 before training; the second has 10 between -1 and 1.
    assert 6 / 16 <= rows[0]["edges/below_0.5"] < 1
    everything = {"histograms": 0, "images": 0}
    events = EventAccumulator(str(next(tmp_path.glob("*/vis_data/events*"))), size_guidance=everything).Reload()
    assert [event.step for event in events.Scalars("edges/below_0.5")] == [0, 2 * STEPS]
    for stage, edges in enumerate((6, 10)):
        histograms = events.Histograms(f"alpha/backbone.stages.{stage}.wiring")
        assert [(event.step, event.histogram_value.num) for event in histograms] == [(0, edges), (2 * STEPS, edges)]
    assert [event.step for event in events.Images("adjacency")] == [0, 2 * STEPS]


def test_edges_are_recorded_by_iteration_where_there_are_no_epochs(tmp_path):
    _, model = pair("uniform")
    train_cfg = {"by_epoch": False, "max_iters": STEPS, "val_interval": 3}
    run(model, tmp_path, [AlphaLogHook()], train_cfg=train_cfg, log_processor={"by_epoch": False})
    assert sorted(p.name for p in (tmp_path / "alpha").glob("alpha_*")) == [
        "alpha_iter000000.png",
        "alpha_iter000003.png",
    ]


def test_a_model_without_edges_is_left_alone(tmp_path):
    class Plain(BaseModel):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Conv2d(3, 1, 1)

        def forward(self, inputs, mode="loss"):
            return {"loss": self.layer(inputs).square().mean()}

    run(Plain(), tmp_path, [AlphaLogHook()])
    assert not (tmp_path / "alpha").exists()
