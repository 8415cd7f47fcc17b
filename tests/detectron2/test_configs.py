import gc
import importlib.util
import inspect
import math
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.data import DatasetMapper, build_detection_train_loader
from detectron2.data.datasets import load_coco_json
from detectron2.data.samplers import TrainingSampler
from detectron2.evaluation import COCOEvaluator
from detectron2.modeling import build_model
from detectron2.solver import LRMultiplier, build_lr_scheduler
from detectron2.utils.events import EventStorage
from omegaconf import ListConfig
from torch import nn

from tests.detection import IMAGENET
from topodet import connectivity
from topodet.detectron2 import Trainer, load_config
from topodet.detectron2.check import backbones
from topodet.detectron2.config import backbone_node

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs" / "detectron2"
ZOO = Path(importlib.util.find_spec("detectron2.model_zoo").submodule_search_locations[0]) / "configs"
# Arch and sparsity of Table 5's rows.
ROWS = {
    "R_50": (None, "none"),
    "toponet50_residual2": ("toponet50_residual2", "none"),
    "toponet50_alpha": ("toponet50", "none"),
    "toponet50_uniform": ("toponet50", "uniform"),
    "toponet50_adaptive": ("toponet50", "adaptive"),
}
PAIRS = [f"faster_rcnn_{row}_FPN_{schedule}" for row in ROWS for schedule in ("1x", "noaug_1x")] + [
    "faster_rcnn_toponet50_adaptive_FPN_3x",
    *(f"{model}_toponet50_adaptive_FPN_1x" for model in ("mask_rcnn", "cascade_rcnn", "retinanet")),
    *(
        f"faster_rcnn_{name}_FPN_1x"
        for name in ("mobilenetv2_connected", "resnet50_rewired", "convnextv2_nano_connected")
    ),
    *(f"{model}_R_50_connected_FPN_1x" for model in ("faster_rcnn", "mask_rcnn", "cascade_rcnn")),
]
SMALL = [f"faster_rcnn_toponet_nano_FPN_{data}" for data in ("bccd", "coco_mini", "digits")]
# Detectron2's own configs, which ours should be but for the backbone.
ZOO_CONFIGS = {
    "faster_rcnn_R_50_FPN_1x": "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml",
    "faster_rcnn_R_50_FPN_noaug_1x": "Detectron1-Comparisons/faster_rcnn_R_50_FPN_noaug_1x.yaml",
    "faster_rcnn_toponet50_adaptive_FPN_3x": "COCO-Detection/faster_rcnn_R_50_FPN_3x.yaml",
    "mask_rcnn_toponet50_adaptive_FPN_1x": "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml",
    "cascade_rcnn_toponet50_adaptive_FPN_1x": "Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml",
    "retinanet_toponet50_adaptive_FPN_1x": "COCO-Detection/retinanet_R_50_FPN_1x.yaml",
    "faster_rcnn_mobilenetv2_connected_FPN_1x": "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml",
    "faster_rcnn_resnet50_rewired_FPN_1x": "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml",
    "faster_rcnn_convnextv2_nano_connected_FPN_1x": "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml",
    "faster_rcnn_R_50_connected_FPN_1x": "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml",
    "mask_rcnn_R_50_connected_FPN_1x": "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml",
    "cascade_rcnn_R_50_connected_FPN_1x": "Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml",
}
R_50 = ("faster_rcnn_R_50_FPN_1x", "faster_rcnn_R_50_FPN_noaug_1x")
# How a TopoNet differs from ResNet-50; prefixes.
OF_THE_BACKBONE = (
    *(
        "MODEL.BACKBONE.NAME",
        "MODEL.TOPONET.",
        "MODEL.CONNECT.",
        "MODEL.CONNECTED_TIMM.",
        "MODEL.RESNETS.",
        "MODEL.WEIGHTS",
    ),
    *("MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD", "INPUT.FORMAT"),
)
ADAMW = {"MODEL.BACKBONE.FREEZE_AT", "SOLVER.OPTIMIZER", "SOLVER.BASE_LR", "SOLVER.WEIGHT_DECAY"}
PERIODS = {"SOLVER.CHECKPOINT_PERIOD", "TEST.EVAL_PERIOD"}
GROUP = ("lr", "weight_decay", "momentum", "dampening", "nesterov", "betas")

# MMDetection's names of a detector's parts, and Detectron2's.
RENAMED = [
    (r"^backbone\.", "backbone.bottom_up."),
    *((rf"^neck\.lateral_convs\.{k}\.conv", f"backbone.fpn_lateral{k + 2}") for k in range(4)),
    *((rf"^neck\.fpn_convs\.{k}\.conv", f"backbone.fpn_output{k + 2}") for k in range(4)),
    (r"^rpn_head\.rpn_conv", "proposal_generator.rpn_head.conv"),
    (r"^rpn_head\.rpn_cls", "proposal_generator.rpn_head.objectness_logits"),
    (r"^rpn_head\.rpn_reg", "proposal_generator.rpn_head.anchor_deltas"),
    *((rf"^roi_head\.bbox_head\.shared_fcs\.{k}", f"roi_heads.box_head.fc{k + 1}") for k in range(2)),
    (r"^roi_head\.bbox_head\.fc_cls", "roi_heads.box_predictor.cls_score"),
    (r"^roi_head\.bbox_head\.fc_reg", "roi_heads.box_predictor.bbox_pred"),
]


def yaml_config(name, *options):
    return load_config(CONFIGS / f"{name}.yaml", ["MODEL.DEVICE", "cpu", *map(str, options)])


def renamed(key):
    for old, new in RENAMED:
        key = re.sub(old, new, key)
    return key


def differences(one, other):
    """Keys of two configs, or descriptions, that have not the same value."""
    missing = object()
    return {key for key in one.keys() | other.keys() if one.get(key, missing) != other.get(key, missing)}


def flat(cfg, prefix=""):
    for key, value in cfg.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def settings(name):
    return dict(flat(yaml_config(name)))


def describe(value, name=""):
    """Yield all that a module or another object holds, buffers excepted: thresholds, sizes, classes."""
    if isinstance(value, nn.Module):
        yield name, type(value)
        own = {key: held for key, held in vars(value).items() if key not in vars(nn.Module())}
        yield from describe({**own, **value._modules}, name)
    elif isinstance(value, dict):
        for key, held in value.items():
            yield from describe(held, f"{name}.{key}")
    elif isinstance(value, list | tuple | ListConfig):
        yield f"{name}.length", len(value)
        for k, held in enumerate(value):
            yield from describe(held, f"{name}.{k}")
    elif isinstance(value, torch.Tensor):
        yield name, value.tolist()
    elif inspect.isroutine(value) or isinstance(value, type):
        yield name, value.__qualname__
    elif hasattr(value, "__dict__"):
        yield name, type(value)
        yield from describe(vars(value), name)
    else:
        yield name, value


def description(model):
    # A weight of 1 is said in two ways.
    return {key: value for key, value in describe(model) if not (key.endswith("loss_weight.loss_cls") and value == 1)}


def small_batch(cfg, coco):
    """Return the set's images at their own size, as the config's detector takes them."""
    small = cfg.clone()
    small.INPUT.MIN_SIZE_TRAIN = (64,)
    return list(map(DatasetMapper(small, is_train=True), load_coco_json(coco / "all.json", coco / "images")))


def train_a_step(model, optimizer, batch):
    """Return the losses, and the trained parameters without gradient."""
    if hasattr(model, "roi_heads"):
        model.roi_heads.batch_size_per_image = 32  # 512 take most of the time
    model.train()
    torch.manual_seed(1)
    with EventStorage():  # some heads count in it
        losses = model(batch)
    sum(losses.values()).backward()
    idle = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    optimizer.step()
    return {name: loss.item() for name, loss in losses.items()}, idle


def is_norm(module):
    return isinstance(module, nn.LayerNorm | nn.GroupNorm | nn.BatchNorm2d)


def groups(model, optimizer):
    of = {id(p): {key: group.get(key) for key in GROUP} for group in optimizer.param_groups for p in group["params"]}
    return {name: of[id(p)] for name, p in model.named_parameters() if p.requires_grad}


def network(cfg):
    node = backbone_node(cfg)
    return node.get("ARCH") or node.NAME


def assert_same_pretrained(ours, theirs):
    assert {"timm": True, "": None}[ours] is theirs


@pytest.fixture(scope="module", params=PAIRS)
def pair(request, backbone_files):
    """A YAML and its LazyConfig, and the models and optimisers they build."""
    name = request.param
    cfg, lazy = yaml_config(name), LazyConfig.load(str(CONFIGS / f"{name}.py"))
    if "R_50" not in name:
        assert_same_pretrained(backbone_node(cfg).PRETRAINED, lazy.model.backbone.bottom_up.pretrained)
        trained = {"wiring": "learned", "rewire": True} if "rewired" in name else {}
        file = str(backbone_files(network(cfg), **trained))
        backbone_node(cfg).PRETRAINED = lazy.model.backbone.bottom_up.pretrained = file
    sides = SimpleNamespace(name=name, cfg=cfg, lazy=lazy)
    torch.manual_seed(0)
    sides.models = [build_model(cfg)]
    torch.manual_seed(0)
    sides.models.append(instantiate(lazy.model))
    # As Detectron2's script does it.
    lazy.optimizer.params.model = sides.models[1]
    if "datasets" in lazy.optimizer:
        lazy.optimizer.datasets = []  # COCO is not here
    sides.optimizers = [Trainer.build_optimizer(cfg, sides.models[0]), instantiate(lazy.optimizer)]
    yield sides
    sides.__dict__.clear()
    gc.collect()  # a gigabyte


def test_the_list_of_configs():
    bases = ["Base-RCNN-FPN", "Base-RCNN-R50-FPN", "Base-RCNN-Connected-R50-FPN", "Base-RCNN-ConnectedTimm-FPN"]
    bases += [f"Base-{model}-TopoNet{size}-FPN" for model, size in (("RCNN", ""), ("RCNN", "-nano"), ("RetinaNet", ""))]
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == {*PAIRS, *SMALL, *bases}
    assert {path.stem for path in CONFIGS.glob("*.py")} == set(PAIRS)


@pytest.mark.parametrize("name", ZOO_CONFIGS)
def test_is_detectron2s_own_config_but_for_the_backbone(name):
    theirs = load_config("", ["MODEL.DEVICE", "cpu"])
    theirs.merge_from_file(str(ZOO / ZOO_CONFIGS[name]))
    expected = PERIODS | ({"MODEL.MASK_ON"} if "cascade" in name else set()) | (ADAMW if "convnext" in name else set())
    found = differences(settings(name), dict(flat(theirs)))
    own = ("MODEL.BACKBONE.NAME", "MODEL.CONNECT.") if "R_50_connected" in name else OF_THE_BACKBONE
    assert {key for key in found if not key.startswith(() if name in R_50 else own)} == expected


@pytest.mark.parametrize("row", ROWS)
def test_rows_of_table_5_differ_in_nothing_but_the_backbone(row):
    for schedule in ("1x", "noaug_1x"):
        ours = settings(f"faster_rcnn_{row}_FPN_{schedule}")
        found = differences(ours, settings(f"faster_rcnn_R_50_FPN_{schedule}"))
        assert {key for key in found if not key.startswith(OF_THE_BACKBONE)} == set()
        assert ours["MODEL.BACKBONE.FREEZE_AT"] == 2
        assert ours["MODEL.TOPONET.SPARSITY"] == ROWS[row][1]
        if row != "R_50":
            assert ours["MODEL.TOPONET.ARCH"] == ROWS[row][0]
            assert ours["INPUT.FORMAT"] == "RGB"
            for key, values in (("MODEL.PIXEL_MEAN", IMAGENET["mean"]), ("MODEL.PIXEL_STD", IMAGENET["std"])):
                assert ours[key] == pytest.approx([255 * value for value in values])


@pytest.mark.parametrize("name", PAIRS)
def test_the_stock_script_can_save_a_lazy_config(name, tmp_path):
    config = LazyConfig.load(str(CONFIGS / f"{name}.py"))
    LazyConfig.save(config, str(tmp_path / "config.yaml"))
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]  # else a pickle lies beside it
    saved = LazyConfig.load(str(tmp_path / "config.yaml"))
    assert saved.keys() == {"dataloader", "lr_multiplier", "model", "optimizer", "train"}
    assert saved.optimizer.lr == config.optimizer.lr
    assert saved.dataloader.test.mapper.image_format == config.model.input_format


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_small_configs_train_a_step(name, coco, nano):
    cfg = yaml_config(name, "MODEL.TOPONET.PRETRAINED", nano.pth)
    model = build_model(cfg)
    optimizer = Trainer.build_optimizer(cfg, model)
    for parameter, group in groups(model, optimizer).items():
        assert group["weight_decay"] == (0 if parameter.endswith("wiring.alpha") else 1e-4)
    losses, idle = train_a_step(model, optimizer, small_batch(cfg, coco))
    assert idle == []
    assert all(math.isfinite(loss) for loss in losses.values())
    # Without trained weights no box of a later stage may meet a truth.
    later = {f"loss_box_reg_stage{k}" for k in (1, 2)} if "R_50" in pair.name else set()
    assert all(loss > 0 for name, loss in losses.items() if name not in later)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert backbones(model)[0].card["architecture"] == "toponet_nano"


def test_a_pair_is_the_same_model(pair):
    ours, theirs = pair.models
    assert differences(description(ours), description(theirs)) == set()
    for kind in ("named_parameters", "named_buffers"):
        one, other = dict(getattr(ours, kind)()), dict(getattr(theirs, kind)())
        assert one.keys() == other.keys()
        for name, tensor in one.items():
            assert tensor.shape == other[name].shape, name
            assert tensor.requires_grad == other[name].requires_grad, name
            # From the same seed, but the parts of a cascade are made in another order.
            if not torch.equal(tensor, other[name]):
                assert "cascade" in pair.name, name
                assert tensor.std().item() == pytest.approx(other[name].std().item(), rel=0.2), name


def test_a_pair_has_the_same_optimizer(pair):
    both = [groups(model, optimizer) for model, optimizer in zip(pair.models, pair.optimizers)]
    assert both[0] == both[1]
    kinds = {type(optimizer) for optimizer in pair.optimizers}
    adamw = "convnext" in pair.name
    assert kinds == {torch.optim.AdamW if adamw else torch.optim.SGD}
    norms = {
        f"{name}.{part}" for name, m in pair.models[0].named_modules() for part in ("weight", "bias") if is_norm(m)
    }
    for name, group in both[0].items():
        spared = name.endswith("wiring.alpha") or name in norms
        assert group["weight_decay"] == (0 if spared else 0.05 if adamw else 1e-4), name
        assert group["lr"] == (1e-4 if adamw else 0.01 if "retinanet" in pair.name else 0.02)
        assert group["momentum"] == (None if adamw else 0.9)
    node, optimizer = backbone_node(pair.cfg), pair.lazy.optimizer
    assert optimizer.get("sparsity", "none") == node.SPARSITY
    assert node.SPARSITY_WEIGHT == optimizer.get("sparsity_weight", 1e-4) == 1e-4


def test_a_pair_has_the_same_schedule(pair):
    cfg, train = pair.cfg, pair.lazy.train
    assert train.max_iter == cfg.SOLVER.MAX_ITER
    assert train.checkpointer.period == cfg.SOLVER.CHECKPOINT_PERIOD
    assert train.eval_period == cfg.TEST.EVAL_PERIOD
    assert train.init_checkpoint == cfg.MODEL.WEIGHTS
    assert train.amp.enabled == cfg.SOLVER.AMP.ENABLED
    assert train.output_dir == cfg.OUTPUT_DIR
    # Schedulers note the rate of an optimiser when they are made: not of the ones that the other tests use.
    sgds = [
        torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr) for lr in (cfg.SOLVER.BASE_LR, pair.lazy.optimizer.lr)
    ]
    ours = build_lr_scheduler(cfg, sgds[0])
    theirs = LRMultiplier(sgds[1], multiplier=instantiate(pair.lazy.lr_multiplier), max_iter=train.max_iter)
    last = train.max_iter - 1
    steps = (0, 1, 500, 999, 1000, 1001, *(k + d for k in cfg.SOLVER.STEPS for d in (-1, 0, 1)), last)
    for iteration in steps:
        ours.last_epoch = theirs.last_epoch = iteration
        assert ours.get_lr() == pytest.approx(theirs.get_lr(), rel=1e-9), iteration


def test_a_pair_reads_the_same_images(pair, coco):
    cfg, loaders = pair.cfg, pair.lazy.dataloader
    assert list(cfg.DATASETS.TRAIN) == [loaders.train.dataset.names]
    assert list(cfg.DATASETS.TEST) == [loaders.test.dataset.names] == [loaders.evaluator.dataset_name]
    assert loaders.train.total_batch_size == cfg.SOLVER.IMS_PER_BATCH
    assert cfg.DATALOADER.NUM_WORKERS == loaders.train.num_workers == loaders.test.num_workers
    assert loaders.evaluator["_target_"] is COCOEvaluator
    # The one size of test images is chosen from a list in one, drawn from a range in the other; no test reads masks.
    same = {f".augmentations.augs.0.{key}" for key in ("is_range", "sample_style")}
    same |= {".use_instance_mask"} if "mask" in pair.name else set()
    for is_train, loader, expected in ((True, loaders.train, set()), (False, loaders.test, same)):
        ours = dict(describe(DatasetMapper(cfg, is_train=is_train)))
        assert differences(ours, dict(describe(instantiate(loader.mapper)))) == expected
    assert cfg.INPUT.FORMAT == loaders.test.mapper.image_format == pair.lazy.model.input_format
    images = load_coco_json(coco / "all.json", coco / "images")
    batches = []
    for make, is_lazy in ((build_detection_train_loader, False), (instantiate, True)):
        np.random.seed(3)  # noqa: NPY002 - what Detectron2's flips are drawn from
        small = {"dataset": images, "total_batch_size": 2, "num_workers": 0}
        small["sampler"] = TrainingSampler(len(images), seed=0)
        if is_lazy:
            loader = make({**{key: value for key, value in loaders.train.items() if key != "dataset"}, **small})
        else:
            loader = make(cfg, mapper=DatasetMapper(cfg, is_train=True), **small)
        batches.append(next(iter(loader)))
    for one, other in zip(*batches):
        assert one["file_name"] == other["file_name"]
        assert torch.equal(one["image"], other["image"])
        assert torch.equal(one["instances"].gt_boxes.tensor, other["instances"].gt_boxes.tensor)
        assert one["instances"].has("gt_masks") == other["instances"].has("gt_masks") == ("mask" in pair.name)


@pytest.mark.slow
def test_a_pair_trains_the_same_step(pair, coco):
    cfg, models, optimizers = pair.cfg, pair.models, pair.optimizers
    models[1].load_state_dict(models[0].state_dict())
    # A heavy penalty, which shows beside the losses' gradient.
    if connectivity.wirings(models[1]):
        pair.lazy.optimizer.sparsity_weight = 100.0
        optimizers[1] = instantiate(pair.lazy.optimizer)
    connectivity.penalize(optimizers[0], models[0], backbone_node(cfg).SPARSITY, 100.0)
    batch = small_batch(cfg, coco)
    (losses, idle), other = (train_a_step(model, optimizer, batch) for model, optimizer in zip(models, optimizers))
    assert idle == []  # DDP would wait for them
    assert all(math.isfinite(loss) for loss in losses.values())
    # Without trained weights no box of a later stage may meet a truth.
    later = {f"loss_box_reg_stage{k}" for k in (1, 2)} if "R_50" in pair.name else set()
    assert all(loss > 0 for name, loss in losses.items() if name not in later)
    assert other[0] == pytest.approx(losses, rel=1e-5)
    state = models[1].state_dict()
    for name, tensor in models[0].state_dict().items():
        torch.testing.assert_close(tensor, state[name], rtol=1e-4, atol=1e-5, msg=name)
    assert [backbone.card["architecture"] for backbone in backbones(models[0])] == (
        [] if "R_50" in pair.name else [network(cfg)]
    )


@pytest.fixture(scope="module", params=["bccd", "digits"])
def small_pair(request):
    """A small config of MMDetection, and Detectron2's."""
    pytest.importorskip("topodet.mmdet", reason="MMDetection is not installed")
    from mmengine.config import Config

    path = ROOT / "configs" / "mmdet" / f"faster-rcnn_toponet-nano_fpn_{request.param}.py"
    return Config.fromfile(path, format_python_code=False), yaml_config(f"faster_rcnn_toponet_nano_FPN_{request.param}")


def test_a_small_config_detects_as_mmdetections_does(small_pair, nano):
    from mmdet.registry import MODELS
    from mmdet.structures import DetDataSample
    from mmengine.registry import DefaultScope

    config, cfg = small_pair
    cfg.MODEL.TOPONET.PRETRAINED = str(nano.pth)
    ours = build_model(cfg).eval()
    nn.init.normal_(ours.roi_heads.box_predictor.cls_score.weight, std=0.3)  # scores that are not all alike
    with DefaultScope.overwrite_default_scope("mmdet"):
        theirs = MODELS.build(config.model).eval()
    state = ours.state_dict()
    theirs.load_state_dict({key: state.pop(renamed(key)) for key in theirs.state_dict()})
    assert state == {}
    image = torch.randint(0, 255, (3, 128, 160), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    shape = tuple(image.shape[1:])
    sample = DetDataSample(metainfo={"img_shape": shape, "ori_shape": shape, "scale_factor": (1.0, 1.0)})
    with torch.no_grad():
        found = ours([{"image": image}])[0]["instances"]
        expected = theirs.test_step({"inputs": [image.flip(0)], "data_samples": [sample]})[0].pred_instances
    assert len(found) == len(expected) > 10
    torch.testing.assert_close(found.scores, expected.scores)
    torch.testing.assert_close(found.pred_boxes.tensor, expected.bboxes, rtol=1e-4, atol=1e-3)
    assert torch.equal(found.pred_classes, expected.labels)


@pytest.mark.slow
def test_a_small_config_trains_as_mmdetections_does(small_pair):
    from tests.mmdet.helpers import build_scheduler

    config, cfg = small_pair
    optimizer = config.optim_wrapper.optimizer
    an_epoch, odd = divmod(cfg.TEST.EVAL_PERIOD, config.train_cfg.get("val_interval", 1))
    assert not odd
    assert config.train_cfg.max_epochs * an_epoch == cfg.SOLVER.MAX_ITER
    assert config.train_dataloader.batch_size == cfg.SOLVER.IMS_PER_BATCH
    mine, other = (torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr) for lr in (cfg.SOLVER.BASE_LR, optimizer.lr))
    scheduler = build_lr_scheduler(cfg, mine)
    theirs = [build_scheduler(described, other, an_epoch) for described in config.param_scheduler]
    rates = []
    for _ in range(cfg.SOLVER.MAX_ITER):
        rates.append((mine.param_groups[0]["lr"], other.param_groups[0]["lr"]))
        for stepped in (mine, other, scheduler, *theirs):
            stepped.step()
    assert [rate for rate, _ in rates] == pytest.approx([rate for _, rate in rates])
    assert optimizer.type == "SGD"
    assert optimizer.momentum == cfg.SOLVER.MOMENTUM
    assert optimizer.weight_decay == cfg.SOLVER.WEIGHT_DECAY == cfg.SOLVER.WEIGHT_DECAY_NORM
    assert set(config.optim_wrapper.paramwise_cfg) == {"custom_keys"}  # which spares the edge weights alone
    train = config.model.train_cfg
    assert train.rpn.sampler.num == cfg.MODEL.RPN.BATCH_SIZE_PER_IMAGE
    assert train.rcnn.sampler.num == cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE
    assert train.rpn_proposal.nms_pre == cfg.MODEL.RPN.PRE_NMS_TOPK_TRAIN
    assert train.rpn_proposal.max_per_img == cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN
    [penalty] = [hook for hook in config.custom_hooks if hook["type"] == "SparsityHook"]
    assert (penalty["kind"], penalty["weight"]) == (cfg.MODEL.TOPONET.SPARSITY, cfg.MODEL.TOPONET.SPARSITY_WEIGHT)
    steps = {step.type: step for step in config.train_dataloader.dataset.pipeline}
    assert (cfg.INPUT.MAX_SIZE_TRAIN, *cfg.INPUT.MIN_SIZE_TRAIN) == tuple(steps["Resize"].scale)
    assert tuple(steps["Resize"].scale) == (cfg.INPUT.MAX_SIZE_TEST, cfg.INPUT.MIN_SIZE_TEST)
    assert (cfg.INPUT.RANDOM_FLIP != "none") == ("RandomFlip" in steps)
