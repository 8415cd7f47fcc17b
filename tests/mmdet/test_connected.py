"""Backbones of MMDetection itself, connected."""

import copy
import re
from pathlib import Path

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.runner import Runner

from tests.mmdet.helpers import NANO, small_config, train
from topodet import connectivity
from topodet.datasets.images import read_image
from topodet.errors import ConfigError, WeightsError
from topodet.mmdet import load_detector, predict

PAGE = Path(__file__).resolve().parents[2] / "docs" / "connect.md"
R34 = {"type": "ResNet", "depth": 34, "base_channels": 8, "norm_eval": True, "frozen_stages": 1}


def branches(count):
    parts = {"num_branches": count, "num_blocks": (2,) * count, "num_channels": (8, 16, 32, 64)[:count]}
    return {"num_modules": 1, "block": "BASIC", **parts}


# Of each family a small one that has blocks in series.
FAMILIES = {
    "ResNeXt": {"depth": 50, "groups": 4, "base_width": 4, "base_channels": 8},
    "RegNet": {"arch": "regnetx_400mf"},
    "SwinTransformer": {"embed_dims": 12, "depths": [2, 2, 2, 2], "num_heads": [1, 2, 3, 4]},
    "PyramidVisionTransformerV2": {"embed_dims": 16, "num_layers": [2, 2, 2, 2]},
    "HRNet": {"extra": {f"stage{count}": branches(count) for count in range(1, 5)}},
    "MobileNetV2": {"out_indices": (1, 2, 4, 7)},
    "mmpretrain.ConvNeXt": {
        "arch": {"depths": [1, 2, 3, 1], "channels": [8, 16, 24, 32]},
        "out_indices": (0, 1, 2, 3),
        "gap_before_final_norm": False,
    },
}


def detector(digits, folder, backbone, **options):
    changes = {
        "model.backbone": {"_delete_": True, **copy.deepcopy(backbone)},
        "model.neck.in_channels": [8, 16, 32, 64],
    }
    return small_config(NANO, digits, folder, {**changes, "train_cfg.max_epochs": 1, **options})


@pytest.fixture(scope="module")
def trained(digits, tmp_path_factory):
    """The config and the checkpoint of a detector without wiring, as MMDetection trained it."""
    folder = tmp_path_factory.mktemp("stock")
    config = detector(digits, folder / "work", R34, custom_hooks=[])
    config.dump(folder / "config.py")
    train(config)
    return folder / "config.py", folder / "work" / "epoch_1.pth"


def test_a_trained_detector_goes_on_with_wiring(trained, digits, tmp_path, capsys):
    backbone = {"type": "Connected", "backbone": R34, "nodes": "auto"}
    config = detector(digits, tmp_path / "work", backbone, load_from=str(trained[1]))
    config.dump(tmp_path / "config.py")
    stock = load_detector(trained[1], config=trained[0], device="cpu")
    connected = load_detector(trained[1], config=tmp_path / "config.py", device="cpu")
    for path in sorted((digits / "images").iterdir()):
        theirs, ours = (predict(each, read_image(path), score_threshold=0) for each in (stock, connected))
        assert len(theirs) > 0
        assert theirs.labels.tolist() == ours.labels.tolist()
        assert ours.boxes == pytest.approx(theirs.boxes, rel=1e-5, abs=1e-4)
        assert ours.scores == pytest.approx(theirs.scores, rel=1e-5, abs=1e-6)
    wirings = connectivity.wirings(connected)
    chains = {name: [j == i - 1 for j, i in wiring.topology.edges] for name, wiring in wirings.items()}
    assert {name: wiring.alpha.tolist() for name, wiring in wirings.items()} == chains
    capsys.readouterr()
    runner = train(config)
    printed = capsys.readouterr().out
    assert "4 runs of ResNet are not in the checkpoint: their edges start as in the original" in printed
    after = {name: wiring.alpha.detach() for name, wiring in connectivity.wirings(runner.model).items()}
    assert after.keys() == chains.keys()
    for name, alpha in after.items():
        zeros = torch.tensor([not of_chain for of_chain in chains[name]], device=alpha.device)
        moved = (alpha[zeros] != 0).tolist()
        assert moved == ["layer1" not in name] * len(moved), name  # frozen_stages 1
    assert not runner.model.backbone.layer1.training
    # What it trained comes back, wiring and all.
    again = load_detector(tmp_path / "work" / "epoch_1.pth", config=tmp_path / "config.py", device="cpu")
    for name, wiring in connectivity.wirings(again).items():
        torch.testing.assert_close(wiring.alpha, after[name].cpu())


def test_the_lines_of_the_page(trained, digits, tmp_path):
    [code] = re.findall(r"```python\n(# of MMDetection.*?)```", PAGE.read_text(), flags=re.DOTALL)
    mine = tmp_path / "my_config.py"
    detector(digits, tmp_path / "work", {"type": "Connected", "backbone": R34, "nodes": "auto"}).dump(mine)
    image = min((digits / "images").iterdir())
    places = {"images/1.jpg": image, "yours.py": trained[0], "my_config.py": mine, "epoch_12.pth": trained[1]}
    for name, path in places.items():
        code = code.replace(f'"{name}"', repr(str(path)))
    shown: list = []
    exec(compile(code.replace("=0.05", "=0"), PAGE.name, "exec"), {"print": shown.append})
    assert len(shown[0]) > 0
    assert shown[1] == pytest.approx(shown[0], rel=1e-5, abs=1e-6)


def test_another_backbones_checkpoint_stops(trained, digits, tmp_path):
    backbone = {"type": "Connected", "backbone": {**R34, "base_channels": 4}}
    config = detector(digits, tmp_path, backbone, load_from=str(trained[1]))
    config.model.neck.in_channels = [4, 8, 16, 32]
    with pytest.raises(WeightsError, match=r"fills \d+/\d+ tensors of the backbone ResNet; .* list in missing_ok"):
        Runner.from_cfg(config).load_or_resume()


def test_tensors_that_a_checkpoint_may_lack(trained):
    state = torch.load(trained[1], weights_only=False)["state_dict"]  # the test's own
    state = {name: tensor for name, tensor in state.items() if "layer4" not in name}
    for missing_ok in (["layer4.*"], ["layer3.*"]):
        backbone = MODELS.build({"type": "Connected", "backbone": R34, "missing_ok": missing_ok})
        model = torch.nn.ModuleDict({"backbone": backbone})
        if missing_ok == ["layer4.*"]:
            missing = model.load_state_dict(state, strict=False).missing_keys
            assert all(name.startswith("backbone.layer4.") for name in missing)
        else:
            with pytest.raises(WeightsError, match="layer4"):
                model.load_state_dict(state, strict=False)


def test_weights_of_the_backbone_alone(tmp_path):
    stock = MODELS.build(R34)
    torch.save(stock.state_dict(), tmp_path / "r34.pth")
    init = {"type": "Pretrained", "checkpoint": str(tmp_path / "r34.pth")}
    connected = MODELS.build({"type": "Connected", "backbone": {**R34, "init_cfg": init}})
    connected.init_weights()
    for name, tensor in stock.state_dict().items():
        torch.testing.assert_close(connected.state_dict()[name], tensor)
    torch.save({"other": torch.ones(1)}, tmp_path / "other.pth")
    init["checkpoint"] = str(tmp_path / "other.pth")
    with pytest.raises(WeightsError, match="none of the .* tensors of ResNet is in the checkpoint"):
        MODELS.build({"type": "Connected", "backbone": {**R34, "init_cfg": init}}).init_weights()


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_computes_what_it_did(name):
    if name.startswith("mmpretrain."):
        pytest.importorskip("mmpretrain.models", reason="mmpretrain is not installed")
    config = {"type": name, **FAMILIES[name]}
    stock = MODELS.build(config)
    connected = MODELS.build({"type": "Connected", "backbone": config})
    connected.load_state_dict(stock.state_dict())
    image = torch.randn(1, 3, 64, 96)
    stock.eval()
    connected.eval()
    with torch.no_grad():
        for theirs, ours in zip(stock(image), connected(image), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * theirs.abs().max().item())
    connected.train()
    sum(part.square().mean() for part in connected(image)).backward()
    wirings = connectivity.wirings(connected)
    assert wirings
    for wiring in wirings.values():
        assert wiring.alpha.grad.count_nonzero() == len(wiring.alpha)


def test_what_cannot_be_connected():
    with pytest.raises(ConfigError, match="nothing to connect in SSDVGG"):
        MODELS.build({"type": "Connected", "backbone": {"type": "SSDVGG", "depth": 11, "out_feature_indices": (4,)}})
    with pytest.raises(ConfigError, match="unknown wiring 'none'"):
        MODELS.build({"type": "Connected", "backbone": R34, "wiring": "none"})


def test_edges_that_pruning_left():
    name, *_ = connectivity.wirings(MODELS.build({"type": "Connected", "backbone": R34}))
    pruned = MODELS.build({"type": "Connected", "backbone": R34, "edges": {name: [[0, 1], [1, 2], [2, 3]]}})
    assert connectivity.wirings(pruned)[name].topology.num_edges == 3
    with pytest.raises(ConfigError, match="unknown run in edges 'layer9.wiring'"):
        MODELS.build({"type": "Connected", "backbone": R34, "edges": {"layer9.wiring": [[0, 1]]}})
