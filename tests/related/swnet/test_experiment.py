import json
import re

import numpy as np
import pytest
import torch

from tools import small_world_experiment
from topodet.errors import DataError
from topodet.records import runs
from topodet.related.swnet import experiment
from topodet.related.swnet.experiment import NETWORKS, arrays, digits, iterations_to, speedup
from topodet.related.swnet.model import channel_graph

ROOT = small_world_experiment.ROOT


def test_iterations_to_a_target():
    curve = [0.1, 0.5, 0.4, 0.9, 0.8]
    assert [iterations_to(curve, target, 20) for target in (0.1, 0.5, 0.6, 0.9, 0.95)] == [20, 40, 80, 80, None]


def test_speedup_is_of_all_seeds():
    assert speedup([60, 100], [20, 60]) == 2
    assert speedup([60, None], [20, 60]) is None
    assert speedup([60, 100], [20, None]) is None


@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name):
    task = digits()
    torch.manual_seed(0)
    model = NETWORKS[name](task)
    assert model(task.train[0][:2]).shape == (2, 10)
    graph = channel_graph(model, image_size=8)
    layers = {"plain": [8, 8, 8, 8, 16, 16, 16, 32, 32], "resnet": [4, 4, 8, 8, 8, 16, 16, 32, 32]}
    assert list(graph.widths) == layers[name]


def test_the_tool_records_every_run(tmp_path, capsys):
    words = ["--networks", "plain", "--seeds", "2", "--p", "0.3", "max_s", "--iterations", "4", "--every", "2"]
    words += ["--targets", "0.01", "1", "--json", str(tmp_path / "a.json")]
    assert small_world_experiment.main(words) == 0
    record = json.loads((tmp_path / "a.json").read_text())
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert experiment.table(record) in capsys.readouterr().out
    assert (record["kind"], record["name"]) == ("experiment", "a")
    assert record["command"].startswith("python tools/small_world_experiment.py --networks plain")
    assert {"torch", "topodet", "python", "scikit-learn"} <= record["versions"].keys()
    network = record["networks"]["plain"]
    assert [row["p"] for row in network["runs"]] == [0, 0.3, network["sweep"]["best"]]
    assert len({(row["kernels"], row["parameters"]) for row in network["runs"]}) == 1
    original, *retargeted = network["runs"]
    assert original["small_worldness"] == 0
    for row in retargeted:
        assert row["small_worldness"] > 0
        assert row["multiply_adds"] < original["multiply_adds"]  # later layers have fewer pixels
        assert np.shape(row["accuracies"]) == (2, 2)
        reached, never = row["targets"]
        assert reached["iterations"] == [2, 2]
        assert reached["speedup"] == 1
        assert never == {"target": 1, "iterations": [None, None], "speedup": None}
    assert original["accuracies"] != retargeted[0]["accuracies"] != retargeted[1]["accuracies"]


@pytest.mark.parametrize("name", ["swnet_digits", "swnet_cifar100"])
def test_the_page_shows_the_recorded_runs(name):
    (record,) = [r for r in runs.load_all(ROOT / "records" / "experiments") if r["name"] == name]
    every = record["settings"]["every"]
    for network in record["networks"].values():
        original = network["runs"][0]
        for row in network["runs"]:
            for found, theirs in zip(row["targets"], original["targets"]):
                numbers = [iterations_to(curve, found["target"], every) for curve in row["accuracies"]]
                assert found["iterations"] == numbers
                assert found["speedup"] == speedup(theirs["iterations"], numbers)
    page = (ROOT / "docs" / "topology_swnet.md").read_text()
    assert experiment.table(record) in page
    assert record["command"] in page
    assert f"]({name}.png)" in page
    assert (ROOT / "docs" / f"{name}.png").exists()


def write(folder, split, images, labels):
    np.savez(folder / f"{split}.npz", images=images, labels=labels)


def test_arrays(tmp_path):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (30, 6, 6, 3), dtype=np.uint8), np.arange(30) % 5
    for split in ("train", "validation"):
        write(tmp_path, split, images, labels)
    task = arrays(tmp_path, num_classes=3)
    kept = labels < 3
    assert task.train[1].tolist() == labels[kept].tolist()
    pixels = torch.from_numpy(images[kept]).permute(0, 3, 1, 2).double() / 255
    expected = (pixels - pixels.mean((0, 2, 3), keepdim=True)) / pixels.std((0, 2, 3), keepdim=True)
    torch.testing.assert_close(task.train[0].double(), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(task.train[0], task.val[0])
    assert "first 3 classes: 18 train and 18 val images" in task.description


def test_arrays_that_cannot_be_used_are_named(tmp_path):
    images, labels = np.zeros((4, 6, 6, 3), np.uint8), np.arange(4)
    with pytest.raises(DataError, match=r"cannot read .*train.npz"):
        arrays(tmp_path)
    write(tmp_path, "train", images, labels)
    with pytest.raises(DataError, match="has images of only 4 of the first 10 classes"):
        arrays(tmp_path)
    write(tmp_path, "train", images.astype(np.float32), labels)
    with pytest.raises(DataError, match=re.escape("got float32 [4, 6, 6, 3] and [4]")):
        arrays(tmp_path, num_classes=2)
    (tmp_path / "train.npz").write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(DataError, match=r"train.npz: .* damaged or not an .npz file"):
        arrays(tmp_path, num_classes=2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--networks", "plan"], "unknown network 'plan'. Did you mean 'plain'"),
        (["--seeds", "0"], "needs at least 1 seed, got 0"),
        (["--networks", "plain", "--p", "some"], "p='some' is invalid"),
        (["--targets", "95"], "target 95.0 is not an accuracy"),
        (["--every", "300"], "measured every 300 of 200 iterations: that is never"),
        (["--data", "nowhere"], "cannot read nowhere/train.npz"),
    ],
)
def test_wrong_options_are_one_line(words, message, capsys):
    assert small_world_experiment.main(words) == 1
    assert re.search(f"^error: .*{re.escape(message)}", capsys.readouterr().err)
