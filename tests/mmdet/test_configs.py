import math

import pytest
import torch
from mmdet.datasets import CocoDataset
from mmengine.hooks import Hook
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from tests.detection import write_coco
from tests.mmdet.helpers import SHIPPED, build_scheduler, load, small_config, train
from topodet.mmdet.base import TopodetBackbone

ROWS = [
    f"faster-rcnn_{row}_fpn"
    for row in ("r50", *(f"toponet50-{k}" for k in ("residual2", "alpha", "uniform", "adaptive")))
]
CHANNELS = {"toponet_nano": [32, 64, 128, 256], "toponet50": [128, 256, 512, 1024], "r50": [256, 512, 1024, 2048]}


# Networks of timm that are connected, and whether timm's weights are where they start.
CONNECTED = {"mobilenetv2-connected": True, "resnet50-rewired": None, "convnextv2-nano-connected": True}


# MMDetection's own ResNet-50, connected.
R50_CONNECTED = (
    "faster-rcnn_r50-connected_fpn_1x_coco",
    "dino-4scale_r50-connected_8xb2-12e_coco",
    "rtmdet_tiny_r50-connected_8xb32-300e_coco",
)


class WithoutGradient(Hook):
    """Note the trained parameters that get no gradient."""

    def before_train(self, runner):
        runner.optim_wrapper.optimizer.register_step_pre_hook(lambda *_: self.note(runner.model))

    def note(self, model):
        self.names = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]


def sparsity(config):
    return [hook["kind"] for hook in config.get("custom_hooks") or [] if hook["type"] == "SparsityHook"]


def fewer_boxes(train_cfg):
    """Draw 32 boxes from 64 proposals: the boxes of small images overlap, and the heads take most of a step's time."""
    heads = train_cfg.get("rcnn") or []
    for part in heads if isinstance(heads, list) else [heads]:
        if "sampler" in part:
            part.sampler.num = 32
    if "rpn_proposal" in train_cfg:
        train_cfg.rpn_proposal.max_per_img = 64


def norms(model):
    kinds = (nn.LayerNorm, _BatchNorm)
    parts = {name for name, module in model.named_modules() if isinstance(module, kinds)}
    return {name for name, _ in model.named_parameters() if name.rpartition(".")[0] in parts}


def test_the_list_of_configs():
    assert set(SHIPPED) == {
        *(f"{row}_1x_coco" for row in ROWS),
        *(f"{row}_detectron-1x_coco" for row in ROWS),
        *(f"{model}_toponet50-adaptive_fpn_1x_coco" for model in ("mask-rcnn", "retinanet", "cascade-rcnn")),
        "faster-rcnn_toponet-nano_fpn_bccd",
        "faster-rcnn_toponet-nano_fpn_bccd-pillow",
        "faster-rcnn_toponet-nano_fpn_digits",
        "faster-rcnn_mobilenetv2-connected_fpn_bccd",
        "faster-rcnn_mobilenetv2_fpn_bccd",
        *(f"faster-rcnn_{name}_fpn_1x_coco" for name in CONNECTED),
        *R50_CONNECTED,
        "dino-4scale_toponet50_8xb2-12e_coco",
        "rtmdet_tiny_toponet50_8xb32-300e_coco",
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
def test_trains_a_step_as_shipped(name, backbone_files, tmp_path):
    # Not the records of the edges, which other tests make: pictures take longer than the step.
    options = {
        "default_hooks.checkpoint": None,
        "custom_hooks": [hook for hook in load(name).get("custom_hooks") or [] if hook["type"] != "AlphaLogHook"],
        **{f"{part}_{kind}": None for part in ("val", "test") for kind in ("cfg", "dataloader", "evaluator")},
    }
    root = write_coco(tmp_path / "set", load(name).get("metainfo", CocoDataset.METAINFO)["classes"])
    config = small_config(name, root, tmp_path)
    backbone = config.model.backbone
    arch = backbone.get("arch") or backbone.get("name")
    if backbone.type in ("TopoNet", "ConnectedTimm"):
        trained = {"wiring": "learned", "rewire": True} if backbone.get("rewire") else {}
        options["model.backbone.pretrained"] = str(backbone_files(arch, **trained))
    else:
        stock = "model.backbone.backbone" if backbone.type == "Connected" else "model.backbone"
        options[f"{stock}.init_cfg"] = None  # a download
    if config.model.type == "DINO":
        options["model.num_queries"] = 20  # of 900, more than small images have places
    fewer_boxes(config.model.get("train_cfg") or {})
    by_epoch = config.train_cfg.type == "EpochBasedTrainLoop"
    options["train_cfg.max_epochs" if by_epoch else "train_cfg.max_iters"] = 1
    config.merge_from_dict(options)
    watch = WithoutGradient()
    runner = train(config, watch)
    assert runner.iter == 1
    losses = {
        key: runner.message_hub.get_scalar(key).current() for key in runner.message_hub.log_scalars if "loss" in key
    }
    loss = losses.pop("train/loss")
    assert math.isfinite(loss)
    assert loss == pytest.approx(sum(losses.values()), rel=1e-4)
    assert watch.names == []  # DDP would wait for them
    model = runner.model
    assert ("train/sparsity_penalty" in runner.message_hub.log_scalars) == bool(sparsity(config))
    if isinstance(model.backbone, TopodetBackbone):
        assert model.backbone.card["architecture"] == arch
        groups = {id(p): group for group in runner.optim_wrapper.param_groups for p in group["params"]}
        decay = config.optim_wrapper.optimizer.weight_decay
        spared = norms(model) if config.optim_wrapper.paramwise_cfg.get("norm_decay_mult") == 0 else set()
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                without = name.endswith("wiring.alpha") or name in spared
                without |= name.endswith(".bias") and config.optim_wrapper.paramwise_cfg.get("bias_decay_mult") == 0
                expected = 0 if without else decay
                assert groups[id(parameter)]["weight_decay"] == expected, name


@pytest.mark.parametrize("row", ROWS)
def test_rows_of_table_5_differ_in_nothing_but_the_backbone(row):
    for schedule in ("1x", "detectron-1x"):
        config, other = load(f"{row}_{schedule}_coco"), load(f"faster-rcnn_r50_fpn_{schedule}_coco")
        assert config.model.neck.in_channels == CHANNELS["r50" if "r50" in row else "toponet50"]
        for part in ("rpn_head", "roi_head", "train_cfg", "test_cfg", "data_preprocessor"):
            assert config.model[part] == other.model[part], part
        for part in ("train_dataloader", "val_dataloader", "train_cfg", "param_scheduler", "auto_scale_lr"):
            assert config[part] == other[part], part
        assert config.optim_wrapper.optimizer == other.optim_wrapper.optimizer
        assert config.model.backbone.frozen_stages == other.model.backbone.frozen_stages == 1
        assert sparsity(config) == [kind for kind in ("uniform", "adaptive") if kind in row]


@pytest.mark.parametrize("name", CONNECTED)
def test_connected_networks_are_trained_as_resnet_50_is(name):
    config, other = load(f"faster-rcnn_{name}_fpn_1x_coco"), load("faster-rcnn_r50_fpn_1x_coco")
    for part in ("rpn_head", "roi_head", "train_cfg", "test_cfg", "data_preprocessor"):
        assert config.model[part] == other.model[part], part
    for part in ("train_dataloader", "val_dataloader", "train_cfg", "auto_scale_lr"):
        assert config[part] == other[part], part
    for key in ("type", "milestones", "gamma", "begin", "end"):
        assert config.param_scheduler[1][key] == other.param_scheduler[1][key]
    assert sparsity(config) == ["adaptive"]
    if "convnext" in name:  # as MMDetection's own Swin-T in 1x, which needs no frozen part
        assert config.optim_wrapper.optimizer == {
            "type": "AdamW",
            "lr": 1e-4,
            "betas": (0.9, 0.999),
            "weight_decay": 0.05,
        }
        assert config.param_scheduler[0].end == 1000
        return
    assert config.optim_wrapper.optimizer == other.optim_wrapper.optimizer
    assert config.param_scheduler[0] == other.param_scheduler[0]
    assert config.model.backbone.frozen_stages == other.model.backbone.frozen_stages


def test_connected_mobilenetv2_differs_from_the_plain_one_in_its_edges_alone():
    connected, plain = (load(f"faster-rcnn_mobilenetv2{kind}_fpn_bccd").to_dict() for kind in ("-connected", ""))
    assert connected["model"]["backbone"].pop("wiring") == "learned"
    assert plain["model"]["backbone"].pop("wiring") == "none"
    edges = {"AlphaLogHook", "SparsityHook"}
    hooks = connected.pop("custom_hooks")
    assert [hook for hook in hooks if hook["type"] not in edges] == plain.pop("custom_hooks")
    assert connected == plain


def rates(config, iterations):
    """Return the learning rate of every iteration, as MMEngine's runner has it with `iterations` to an epoch."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=config.optim_wrapper.optimizer.lr)
    schedulers = [build_scheduler(described, optimizer, iterations) for described in config.param_scheduler]
    found = []
    for _ in range(config.train_cfg.max_epochs * iterations):
        found.append(optimizer.param_groups[0]["lr"])
        for stepped in (optimizer, *schedulers):
            stepped.step()
    return found


@pytest.mark.parametrize("iterations", [1, 9, 25, 40, 147])
@pytest.mark.parametrize("name", [name for name in SHIPPED if "coco" not in name or "mini" in name])
def test_the_rate_drops_at_any_size_of_the_set(name, iterations):
    config = load(name)
    found, warm_up = rates(config, iterations), config.param_scheduler[0].end
    full = config.optim_wrapper.optimizer.lr
    drops = [step for step in range(1, len(found)) if found[step] < 0.2 * found[step - 1]]
    assert drops == [len(found) * part // 12 for part in (8, 11)]  # the 1x schedule: after 8 and 11 epochs of 12
    if drops[0] > warm_up:
        assert found[drops[0] - 1] == pytest.approx(full)
        assert found[-1] == pytest.approx(0.01 * full)


@pytest.mark.parametrize("name", SHIPPED)
def test_auto_scale_lr_leaves_the_rate_of_the_configs_own_batch(name):
    config = load(name)
    batch = config.train_dataloader.batch_size
    assert config.auto_scale_lr.base_batch_size in (batch, 8 * batch)  # one GPU, or the 8 of COCO's schedules


@pytest.mark.parametrize("row", ROWS)
def test_schedules(row):
    epochs, iterations = load(f"{row}_1x_coco"), load(f"{row}_detectron-1x_coco")
    for config in (epochs, iterations):
        assert config.optim_wrapper.optimizer == {"type": "SGD", "lr": 0.02, "momentum": 0.9, "weight_decay": 0.0001}
        assert config.auto_scale_lr.base_batch_size == 16
        assert [step.scale for step in config.train_dataloader.dataset.pipeline if step.type == "Resize"] == [
            (1333, 800)
        ]
    assert epochs.train_cfg.max_epochs == 12
    assert epochs.param_scheduler[1].milestones == [8, 11]
    assert epochs.param_scheduler[0].end == 500
    assert iterations.train_cfg.max_iters == 90_000
    assert iterations.param_scheduler[1].milestones == [60_000, 80_000]
    assert (iterations.param_scheduler[0].end, iterations.param_scheduler[0].start_factor) == (500, 1 / 3)
    assert iterations.train_dataloader.sampler.type == "InfiniteSampler"
    assert iterations.default_hooks.checkpoint.interval == iterations.train_cfg.val_interval == 10_000
    assert not iterations.default_hooks.checkpoint.by_epoch
    assert not iterations.log_processor.by_epoch
    assert not iterations.model.backbone.norm_cfg.requires_grad
    assert epochs.model.backbone.norm_cfg.requires_grad


@pytest.mark.parametrize("name", [name for name in SHIPPED if "r50_" not in name])
def test_every_toponet_config_registers_and_checks(name):
    config = load(name)
    assert config.custom_imports == {"imports": ["topodet.mmdet"], "allow_failed_imports": False}
    edges = set() if config.model.backbone.get("wiring") == "none" else {"AlphaLogHook"}
    assert {"TopoNetCheckHook", *edges} <= {hook["type"] for hook in config.custom_hooks}
    assert {backend["type"] for backend in config.visualizer.vis_backends} == {
        "LocalVisBackend",
        "TensorboardVisBackend",
    }
    network = name.removeprefix("faster-rcnn_").removesuffix("_fpn_1x_coco")
    assert config.model.backbone.get("pretrained") is CONNECTED.get(network)
