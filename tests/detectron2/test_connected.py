"""Backbones of Detectron2 itself, connected."""

import pickle

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from detectron2.modeling import build_model

from tests.detectron2.helpers import small_config, trainable_config
from topodet import connectivity
from topodet.detectron2 import TopoNetCheckpointer, Trainer, common_config, connect
from topodet.errors import ConfigError, WeightsError

R34 = {
    "MODEL__BACKBONE__NAME": "build_resnet_fpn_backbone",
    "MODEL__BACKBONE__FREEZE_AT": 2,
    "MODEL__RESNETS__DEPTH": 34,
    "MODEL__RESNETS__RES2_OUT_CHANNELS": 64,
    "MODEL__RESNETS__OUT_FEATURES": ["res2", "res3", "res4", "res5"],
}
# The FPN by ours, or by Detectron2's own builder.
CONNECTED = {
    "ours": {"MODEL__BACKBONE__NAME": "build_connected_fpn_backbone"},
    "theirs": {
        "MODEL__BACKBONE__NAME": "build_connected_backbone",
        "MODEL__CONNECT__BACKBONE": "build_resnet_fpn_backbone",
    },
}


def chain(wiring):
    return [float(j == i - 1) for j, i in wiring.topology.edges]


@pytest.fixture(scope="module")
def stock():
    torch.manual_seed(0)
    model = build_model(small_config(**R34)).eval()
    with torch.no_grad():
        for name, buffer in model.backbone.bottom_up.named_buffers():
            if name.endswith("norm.weight"):
                buffer.fill_(0.7)
    return model


@pytest.fixture(scope="module")
def zoo_file(stock, tmp_path_factory):
    """A file as Detectron2's zoo has them."""
    path = tmp_path_factory.mktemp("zoo") / "model_final_stock.pkl"
    content = {
        "model": {name: tensor.numpy() for name, tensor in stock.state_dict().items()},
        "__author__": "Detectron2",
    }
    path.write_bytes(pickle.dumps(content))
    return path


@pytest.mark.parametrize("checkpointer", [DetectionCheckpointer, TopoNetCheckpointer])
@pytest.mark.parametrize("way", CONNECTED)
def test_a_file_of_the_zoo_gives_the_same_detections(way, checkpointer, stock, zoo_file):
    connected = build_model(small_config(**{**R34, **CONNECTED[way]})).eval()
    checkpointer(connected).load(str(zoo_file))
    assert connected.backbone.output_shape() == stock.backbone.output_shape()
    image = {"image": torch.randint(0, 255, (3, 64, 96), generator=torch.Generator().manual_seed(0)).float()}
    with torch.no_grad():
        (theirs,), (ours,) = stock([image]), connected([image])
    theirs, ours = theirs["instances"], ours["instances"]
    assert len(theirs) > 0
    torch.testing.assert_close(ours.pred_boxes.tensor, theirs.pred_boxes.tensor, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(ours.scores, theirs.scores, rtol=1e-5, atol=1e-6)
    for name, wiring in connectivity.wirings(connected).items():
        assert wiring.alpha.tolist() == chain(wiring)
        assert wiring.alpha.requires_grad == ("res2" not in name)  # FREEZE_AT 2


def test_it_trains_from_there(zoo_file, coco, tmp_path):
    changes = {**R34, **CONNECTED["ours"], "MODEL__WEIGHTS": str(zoo_file), "MODEL__CONNECT__SPARSITY": "adaptive"}
    trainer = Trainer(trainable_config(coco, tmp_path, **changes, MODEL__CONNECT__LOG_PERIOD=0))
    trainer.resume_or_load(resume=False)
    trainer.train()
    wirings = connectivity.wirings(trainer.model)
    assert len(wirings) == 4
    for name, wiring in wirings.items():
        moved = [bool(now != start) for now, start in zip(wiring.alpha, chain(wiring), strict=True)]
        assert moved == ["res2" not in name] * len(moved), name
    # What it trained comes back, wiring and all.
    again = build_model(small_config(**{**R34, **CONNECTED["ours"]}))
    TopoNetCheckpointer(again).load(str(tmp_path / "model_final.pth"))
    for name, wiring in connectivity.wirings(again).items():
        torch.testing.assert_close(wiring.alpha, wirings[name].alpha)


@pytest.mark.parametrize("checkpointer", [DetectionCheckpointer, TopoNetCheckpointer])
def test_another_backbones_file_stops(checkpointer, zoo_file):
    r50 = {"MODEL__RESNETS__DEPTH": 50, "MODEL__RESNETS__RES2_OUT_CHANNELS": 256}
    deeper = build_model(small_config(**{**R34, **CONNECTED["ours"], **r50}))
    with pytest.raises(WeightsError, match=r"fills \d+/\d+ tensors of the backbone ResNet; .* list in missing_ok"):
        checkpointer(deeper).load(str(zoo_file))


def test_in_a_lazy_config():
    bottom_up = common_config("common/models/mask_rcnn_fpn.py").model.backbone.bottom_up
    bottom_up.stages.depth = 34
    bottom_up.stages.pop("stride_in_1x1")
    stock = instantiate(bottom_up).eval()
    connected = instantiate(L(connect)(model=bottom_up, nodes="blocks", leave_out=["res5"])).eval()
    connected.load_state_dict(stock.state_dict())
    assert set(connectivity.wirings(connected)) == {"res2.0.wiring", "res3.1.wiring", "res4.1.wiring"}
    image = torch.randn(1, 3, 64, 64)
    for name, feature in stock(image).items():
        torch.testing.assert_close(connected(image)[name], feature)


def test_what_cannot_be_connected():
    with pytest.raises(ConfigError, match="unknown nodes 'block'. Did you mean 'blocks'"):
        build_model(small_config(**{**R34, **CONNECTED["ours"], "MODEL__CONNECT__NODES": "block"}))
    shallow = {"MODEL__RESNETS__DEPTH": 18, "MODEL__CONNECT__LEAVE_OUT": ["res2"]}
    with pytest.raises(ConfigError, match="nothing to connect in ResNet"):
        build_model(small_config(**{**R34, **CONNECTED["ours"], **shallow}))


def test_edges_that_pruning_left():
    edges = [["res3.1.wiring", [[0, 1], [1, 2], [2, 3]]]]
    model = build_model(small_config(**{**R34, **CONNECTED["ours"], "MODEL__CONNECT__EDGES": edges}))
    assert connectivity.wirings(model)["backbone.bottom_up.res3.1.wiring"].topology.num_edges == 3
