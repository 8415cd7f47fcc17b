"""A pruned backbone in MMDetection: built from its file, trained, tested, damaged."""

import shutil
from pathlib import Path

import pytest
import timm
import torch
from mmdet.apis import inference_detector, init_detector
from mmdet.registry import MODELS
from mmengine.model import Sequential
from mmengine.runner import Runner

from tests.detection import SIZE, published, with_ground_truth
from tests.mmdet.helpers import NANO, build, small_config, train
from topodet import connectivity, weights
from topodet.errors import ConfigError, WeightsError
from topodet.mmdet import coco_evaluation, load_detector
from topodet.models import Wiring


def test_the_file_gives_the_network(pruned, nano):
    whole = weights.build(nano.pth)
    small = connectivity.prune(whole, threshold=0.5, per="node").eval()
    model = build("pretrained", pretrained=str(pruned.pth))
    model.init_weights()
    assert (model.arch, model.topologies) == ("toponet_nano", small.topologies)
    assert model.card["pruned"] == {"threshold": 0.5, "per": "node"}
    assert model.out_channels == (32, 64, 128, 256)
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        maps, expected = model.eval()(x), small.forward_intermediates(x, intermediates_only=True)
        # And what the whole network computes without these edges.
        with connectivity.masked(whole.eval(), connectivity.plan_pruning(whole, threshold=0.5, per="node")):
            masked = whole.forward_intermediates(x, intermediates_only=True)
    for ours, theirs, large in zip(maps, expected, masked, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
        torch.testing.assert_close(ours, large, rtol=0, atol=1e-5 * large.abs().max().item())


def test_other_ways_to_give_it(pruned, tmp_path):
    card = weights.read(pruned.pth).card
    model = build("toponet_nano", nodes=card["nodes"], topology=card["topology"], pretrained=str(pruned.pth))
    model.init_weights()
    model = build("pretrained", init_cfg={"type": "Pretrained", "checkpoint": str(pruned.safetensors)})
    model.init_weights()
    model = build("pretrained", pretrained=str(pruned.pth), out_indices=(0, 1), edge_weights="fixed")
    model.init_weights()
    assert len(model.stages) == 2
    assert not any(wiring.learned for wiring in model.modules() if isinstance(wiring, Wiring))
    # A timm network gets the same graphs.
    features = timm.create_model(
        "toponet_nano",
        features_only=True,
        nodes=card["nodes"],
        topology=card["topology"],
        checkpoint_path=str(pruned.pth),
    )
    assert features.topologies == weights.build(pruned.pth).topologies


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, ConfigError, "arch='pretrained' is the network of the weights file, but none is given"),
        ({"pretrained": "gone.pth"}, WeightsError, "no weights file at gone.pth"),
        ({"pretrained": "PRUNED", "out_indices": (0, 4)}, ConfigError, r"some of the stages 0\.\.3"),
        ({"pretrained": "PRUNED", "in_channels": 1}, WeightsError, "stem.conv.weight is"),
    ],
)
def test_what_makes_no_backbone_is_told(pruned, options, error, message):
    options = {key: str(pruned.pth) if value == "PRUNED" else value for key, value in options.items()}
    with pytest.raises(error, match=message):
        build("pretrained", **options).init_weights()


@pytest.fixture(scope="module")
def trained(pruned, digits, tmp_path_factory):
    """A short training of a detector with the pruned backbone: config and checkpoint. Its backbone's file moved."""
    folder = tmp_path_factory.mktemp("pruned_detector")
    file = shutil.copy(pruned.pth, folder)
    options = {"model.backbone.arch": "pretrained", "model.backbone.pretrained": str(file), "train_cfg.max_epochs": 1}
    options |= {"train_cfg.val_begin": 2, "custom_hooks": [{"type": "TopoNetCheckHook"}]}
    config = small_config(NANO, digits, folder / "work", options)
    config.dump(folder / "config.py")
    runner = train(config)
    return folder / "config.py", folder / "work" / "epoch_1.pth", runner.model


def test_it_is_trained_and_read_back_by_the_stock_api(trained, pruned):
    config, checkpoint, model = trained
    assert model.backbone.topologies == weights.build(pruned.pth).topologies
    assert not torch.equal(model.backbone.stem.conv.weight, weights.read(pruned.pth).state_dict["stem.conv.weight"])
    image = torch.randint(0, 255, (SIZE[1], SIZE[0], 3), dtype=torch.uint8).numpy()
    expected = inference_detector(init_detector(str(config), str(checkpoint), device="cpu"), image).pred_instances
    text = config.read_text()
    config.write_text(text.replace(str(config.parent), "moved"))  # the checkpoint alone tells the graphs
    found = inference_detector(load_detector(checkpoint, config=config), image).pred_instances
    config.write_text(text)
    assert len(expected) > 0
    assert torch.equal(found.bboxes, expected.bboxes)
    assert torch.equal(found.scores, expected.scores)


def test_damage_by_coco_ap(trained, digits, tmp_path):
    """The detector's own boxes are the truth, so that its AP is 1 and damage shows."""
    path, checkpoint, _ = trained
    options = {
        "model.backbone.arch": "pretrained",
        "model.backbone.pretrained": str(next(path.parent.glob("toponet_nano-*.pth"))),
        "model.test_cfg.rcnn.score_thr": 0.0,  # hardly trained, it is sure of nothing
        "load_from": str(checkpoint),
        # Its average is what a checkpoint has as weights; here nothing is trained that it could follow.
        "custom_hooks": [{"type": "TopoNetCheckHook"}, {"type": "EMAHook"}],
    }
    config = small_config(NANO, digits, tmp_path, options)
    config.dump(tmp_path / "config.py")
    detector = init_detector(str(tmp_path / "config.py"), str(checkpoint), device="cpu")
    images = [digits / "images" / f"{number}.jpg" for number in range(2)]
    predictions = [inference_detector(detector, str(image)).pred_instances for image in images]
    # One bound for both: what one image has above the truth of the other would count against it.
    bound = min(boxes.scores[4] for boxes in predictions)
    found = {}
    for number, boxes in enumerate(predictions):
        boxes = boxes[boxes.scores >= bound]
        found[number] = (boxes.bboxes.numpy(), boxes.labels.numpy())
    truth = str(with_ground_truth(digits, found, tmp_path / "found.json"))
    config.merge_from_dict({"val_evaluator.ann_file": truth, "val_dataloader.dataset.ann_file": truth})
    runner = Runner.from_cfg(config)
    evaluate = coco_evaluation(runner)
    saved = {name: value.clone() for name, value in runner.model.state_dict().items()}
    damage = connectivity.remove_edges(runner.model, evaluate, keep=[1.0, 0.5], per="node", progress=False)
    assert all(torch.equal(value, saved[name]) for name, value in runner.model.state_dict().items())
    percent = {name: 100 * value for name, value in runner.val().items() if value >= 0}
    assert damage.whole["bbox/AP"] == pytest.approx(percent["coco/bbox_mAP"])
    assert damage.whole["bbox/AP75"] == pytest.approx(percent["coco/bbox_mAP_75"])
    whole, same, less = (row["bbox/AP"] for row in (damage.whole, *damage.rows))
    assert whole == same > 90 > less
    assert next(iter(damage.whole)) == "bbox/AP"
    # A pruned copy of the whole detector, and not the runner's own model.
    small = connectivity.prune(runner.model, keep=0.9, per="node")
    with connectivity.masked(runner.model, connectivity.plan_pruning(runner.model, keep=0.9, per="node")):
        expected = evaluate(runner.model)
    assert evaluate(small)["bbox/AP"] == pytest.approx(expected["bbox/AP"], abs=0.1)


@pytest.fixture(scope="module")
def connected(tmp_path_factory):
    """A published, pruned network of timm."""
    folder = tmp_path_factory.mktemp("connected")
    return published(folder, "mobilenetv2_050", wiring="learned", prune={"keep": 0.4, "per": "node"})


def test_a_connected_network_is_built_from_its_file(connected, digits, tmp_path):
    file = shutil.copy(connected.pth, tmp_path)
    options = {"train_cfg.max_epochs": 1, "train_cfg.val_begin": 2, "model.neck.in_channels": [16, 16, 48, 160]}
    config = small_config(NANO, digits, tmp_path / "work", options)
    config.model.backbone = {
        "type": "ConnectedTimm",
        "name": "mobilenetv2_050",
        "edges": "pretrained",
        "pretrained": str(file),
    }
    config.dump(tmp_path / "config.py")
    alone = MODELS.build(config.model.backbone)
    alone.init_weights()
    rebuilt = weights.build(connected.pth)
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = rebuilt.eval().forward_intermediates(x, intermediates_only=True)[1:]
        for ours, theirs in zip(alone.eval()(x), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)

    trained = train(config).model.backbone
    assert sum(p.numel() for p in trained.parameters()) == sum(p.numel() for p in alone.parameters())
    image = torch.randint(0, 255, (SIZE[1], SIZE[0], 3), dtype=torch.uint8).numpy()
    checkpoint = tmp_path / "work" / "epoch_1.pth"
    stock = inference_detector(init_detector(str(tmp_path / "config.py"), str(checkpoint), device="cpu"), image)
    Path(file).unlink()  # the checkpoint alone tells the graphs
    detector = load_detector(checkpoint, config=tmp_path / "config.py")
    for name, wiring in connectivity.wirings(detector.backbone.network).items():
        assert torch.equal(wiring.edges, rebuilt.get_submodule(name).edges)
    found = inference_detector(detector, image).pred_instances
    assert torch.equal(found.scores, stock.pred_instances.scores)


def test_a_pruned_resnet(tmp_path):
    """Blocks that have lost modules are not initialised as whole ones are."""
    options = {"layers": [2, 1, 1, 1], "channels": [8, 16, 24, 32]}
    edges = {"wiring": "learned", "rewire": True}
    file = published(tmp_path, "resnet18", **edges, **options, prune={"keep": 0.4, "per": "node"}).pth
    backbone = {"type": "ConnectedTimm", "name": "resnet18", **edges, "options": options}
    model = MODELS.build({**backbone, "edges": "pretrained", "pretrained": str(file)})
    Sequential(model).init_weights()
    state = weights.read(file).state_dict
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.network.state_dict().items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"edges": "pretrained"}, r"edges='pretrained' are those of the weights file, but none is given"),
        ({"edges": "pretrained", "pretrained": True}, "none is given: set pretrained"),
        ({"edges": "learned"}, "unknown edges 'learned'"),
        ({"edges": {"blocks.1.1.wiring": [(0, 1)]}}, r"edges of blocks.1.1.wiring: edge \(0, 1\) is not on a path"),
        (
            {"edges": "pretrained", "pretrained": "FILE", "wiring": "none"},
            "but the network has none: connect or rewire it",
        ),
    ],
)
def test_edges_that_make_no_network_are_told(connected, options, message):
    options = {key: str(connected.pth) if value == "FILE" else value for key, value in options.items()}
    with pytest.raises(ConfigError, match=message):
        MODELS.build({"type": "ConnectedTimm", "name": "mobilenetv2_050", **options})


def test_a_config_without_validation_is_told(digits, tmp_path):
    config = small_config(NANO, digits, tmp_path)
    for name in ("val_dataloader", "val_cfg", "val_evaluator"):
        config[name] = None
    with pytest.raises(ConfigError, match="no val_dataloader"):
        coco_evaluation(Runner.from_cfg(config))
