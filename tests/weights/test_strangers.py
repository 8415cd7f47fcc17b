"""A stranger's checkpoint, through every route that reads one: nothing of it runs, and nothing it names is opened."""

import pickle
import sys

import pytest
import torch

from tests.weights.helpers import checkpoint
from topodet import weights
from topodet.analysis import report
from topodet.errors import TopodetError, WeightsError
from topodet.files import atomic_write
from topodet.models import TopoNet
from topodet.pretrain.checkpoint import open_checkpoint
from topodet.pretrain.saver import read_checkpoint

publish = sys.modules["topodet.weights.publish"]  # whose function has the module's name
rebuild = sys.modules["topodet.weights.rebuild"]
SMALL = {"nodes": [3, 3], "width": 4}


class Payload:
    """Makes a folder when it is unpickled."""

    def __reduce__(self):
        return (__import__("os").mkdir, (self.path,))


def small(folder, **more):
    torch.manual_seed(0)
    model = TopoNet(nodes=(3, 3), width=4, num_classes=2)
    args = {"model": "toponet_nano", "model_kwargs": SMALL, **more.pop("args", {})}
    return checkpoint(folder / "c.pth.tar", model, **{"num_classes": 2, "args": args, **more})


# What a checkpoint may ask for; `trap` is a pickle that runs when timm opens it.
ASKS = {
    "a stream of webdataset": lambda trap, run: {"args": {"dataset": "wds/x", "data_dir": f"pipe:{run};"}},
    "a script of datasets": lambda trap, run: {"args": {"dataset": "hfds/x", "dataset_trust_remote_code": True}},
    "a network of the hub": lambda trap, run: {"args": {"model": "hf-hub:someone/net"}, "arch": "hf-hub:someone/net"},
    "a local network": lambda trap, run: {"args": {"model": f"local-dir:{trap.parent}"}},
    "a file of weights": lambda trap, run: {"args": {"model_kwargs": {**SMALL, "checkpoint_path": str(trap)}}},
    "another start": lambda trap, run: {"args": {"initial_checkpoint": str(trap), "resume": str(trap)}},
    "weights from anywhere": lambda trap, run: {
        "args": {"model_kwargs": {**SMALL, "pretrained_cfg": {"file": str(trap)}}, "pretrained": True}
    },
    "objects": lambda trap, run: {"more": Payload()},
}


def damage(path):
    with open_checkpoint(path, ["--workers", "0", "--dataset", "", "--data-dir", str(path.parent / "none")]):
        pass


ROUTES = {
    "read": weights.read,
    "build": weights.build,
    "publish": lambda path: weights.publish(path, path.parent / "out"),
    "load": lambda path: weights.load(TopoNet(nodes=(3, 3), width=4, num_classes=2), path, quiet=True),
    "report": lambda path: report.open_subject(str(path)),
    "damage": damage,
    "resume": read_checkpoint,
}


@pytest.mark.parametrize("ask", ASKS)
def test_nothing_runs_and_nothing_is_opened(tmp_path, ask, monkeypatch):
    executed, reached = tmp_path / "executed", []
    Payload.path = str(executed)
    monkeypatch.setattr("socket.socket.connect", lambda self, address: reached.append(address))
    trap = tmp_path / "trap.pth"
    trap.write_bytes(pickle.dumps(Payload()))
    path = small(tmp_path, **ASKS[ask](trap, f"touch {executed}"))
    refused = set()
    for name, route in ROUTES.items():
        try:
            route(path)
        except TopodetError:
            refused.add(name)
        assert not executed.exists(), name
        assert not reached, name
    assert "damage" in refused  # there are no images
    if ask == "objects":
        assert refused == {*ROUTES} - {"report"}  # which passes over them
    if ask in ("a network of the hub", "a local network", "a file of weights"):
        assert "report" in refused  # the others take the network from the tensors


@pytest.mark.parametrize("step", ["safetensors_bytes", "atomic_json", "read", "atomic_write"])
def test_a_publication_that_fails_midway_leaves_nothing(tmp_path, step, monkeypatch):
    path, calls = small(tmp_path), []
    read = publish.read

    def fail(*args, **kwargs):
        calls.append(args)
        if step == "read" and len(calls) == 1:  # of the checkpoint; the next are of what was written
            return read(*args, **kwargs)
        if step == "atomic_write" and len(calls) == 1:
            return atomic_write(*args, **kwargs)
        raise OSError("no space left")

    monkeypatch.setattr(publish, step, fail)
    with pytest.raises(OSError, match="no space left"):
        weights.publish(path, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
    monkeypatch.undo()
    files = weights.publish(path, tmp_path / "out")
    monkeypatch.setattr(publish, "atomic_json", fail)
    calls.append(None)
    with pytest.raises(OSError, match="no space left"):  # the same again: what was there is not taken away
        weights.publish(path, tmp_path / "out")
    assert {*(tmp_path / "out").iterdir()} == {files.pth, files.safetensors, files.card}


def test_a_detector_that_does_not_read_back_is_taken_away(tmp_path, monkeypatch):
    file = weights.read(small(tmp_path))
    monkeypatch.setattr(publish, "read_detector", lambda *args: file)
    with pytest.raises(WeightsError, match="does not read back"):
        weights.publish_detector(file, tmp_path / "out", name="a", framework="detectron2", config="", classes=["x"])
    assert not list((tmp_path / "out").iterdir())


def test_networks_of_more_modules_than_the_file_explains(tmp_path, monkeypatch):
    """Modules without values take time and memory that no limit of sizes sees."""
    file = weights.read(small(tmp_path))
    monkeypatch.setattr(rebuild, "_MODULES", 10)
    with pytest.raises(WeightsError, match=r"describes a network of more than [\d,]+ modules"):
        weights.check_size(file, lambda: torch.nn.Sequential(*(torch.nn.Identity() for _ in range(1000))))
    said = "Detectron2 cannot build what its config describes .KeyError: 'a'"
    with pytest.raises(WeightsError, match=said), weights.described_by(file, "Detectron2"):
        {}["a"]


def test_a_graph_whose_edges_and_weights_differ_in_number(tmp_path):
    content = torch.load(small(tmp_path), weights_only=True)
    name = "stages.1.wiring.alpha"
    content["state_dict"][name] = torch.ones(len(content["state_dict"][name]) + 1)
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=r"stages.1.wiring.alpha is \[4\] in the file and \[3\] in the model"):
        weights.build(tmp_path / "a.pth")
