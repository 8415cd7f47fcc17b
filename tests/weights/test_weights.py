import json
import os
import pickle
import re

import pytest
import safetensors.torch
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import topologies
from tests.weights.helpers import checkpoint
from topodet import connectivity, weights
from topodet.errors import ConfigError, WeightsError
from topodet.files import sha256
from topodet.models import TopoNet


def trained(**kwargs):
    """A network whose every tensor differs from a new one's."""
    model = timm.create_model("toponet_nano", num_classes=5, **kwargs)
    for tensor in [*model.parameters(), *(b for b in model.buffers() if b.is_floating_point())]:
        torch.nn.init.uniform_(tensor, 0.5, 1.5)
    return model.eval()


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    torch.manual_seed(0)
    model = trained()
    files = weights.publish(checkpoint(folder / "last.pth.tar", model), folder / "out", notes="nothing real")
    return model, files


def test_three_files_of_one_stem(published):
    _, files = published
    assert files.pth.stem == files.safetensors.stem == files.card.stem
    assert sha256(files.pth).startswith(files.pth.stem.removeprefix("toponet_nano-"))
    card = json.loads(files.card.read_text())
    assert card["sha256"] == {path.name: sha256(path) for path in (files.pth, files.safetensors)}
    assert card["architecture"] == "toponet_nano"
    assert card["metrics"] == {"epoch": 4, "top1": 42.0}
    assert card["mean"] == [0.485, 0.456, 0.406]
    assert card["parameters"] == sum(p.numel() for p in timm.create_model("toponet_nano", num_classes=0).parameters())
    assert [topology["num_nodes"] for topology in card["topology"]] == card["nodes"] == [4, 5, 6, 4]
    assert sorted(os.listdir(files.pth.parent)) == sorted(p.name for p in (files.pth, files.safetensors, files.card))


def test_the_file_is_plain_and_readable_by_both_frameworks(published):
    model, files = published
    content = torch.load(files.pth, weights_only=True)
    assert content["matching_heuristics"] is True
    assert content["__author__"] == "topodet"
    backbone = {name for name in model.state_dict() if not name.startswith("head.")}
    for entry in ("model", "state_dict"):
        assert set(content[entry]) == backbone
        assert all(torch.equal(content[entry][name], model.state_dict()[name]) for name in backbone)
    assert set(safetensors.torch.load_file(files.safetensors)) == backbone


@pytest.mark.parametrize("form", ["pth", "safetensors"])
def test_load_fills_every_tensor(published, form, capsys):
    model, files = published
    other = timm.create_model("toponet_nano", num_classes=3)
    head = other.head.fc.weight.clone()
    report = weights.load(other, getattr(files, form))
    assert report.loaded == report.total == len([n for n in other.state_dict() if not n.startswith("head.")])
    assert f"{report.total}/{report.total} tensors" in capsys.readouterr().out
    for name, tensor in other.state_dict().items():
        if not name.startswith("head."):
            assert torch.equal(tensor, model.state_dict()[name])
    assert torch.equal(other.head.fc.weight, head)
    assert report.card["architecture"] == "toponet_nano"


def test_a_shorter_network_reads_its_part(published):
    model, files = published
    short = timm.create_model("toponet_nano", features_only=True, out_indices=(0, 1)).eval()
    weights.load(short, files.pth)
    image = torch.randn(1, 3, 64, 64)
    for x, y in zip(short(image), model.forward_intermediates(image, intermediates_only=True)):
        assert torch.equal(x, y)


@pytest.mark.parametrize("form", ["pth", "safetensors"])
def test_timm_reads_it_too(published, form):
    model, files = published
    reader = timm.create_model("toponet_nano", features_only=True, checkpoint_path=str(getattr(files, form))).eval()
    image = torch.randn(1, 3, 64, 64)
    assert torch.equal(reader(image)[-1], model.forward_features(image))


@given(topologies(max_nodes=6), topologies(max_nodes=6), st.integers(1, 3))
def test_a_network_is_rebuilt_from_its_tensors(first, second, width):
    model = TopoNet(nodes=(first.num_nodes, second.num_nodes), width=width, in_chans=4, topology=[first, second])
    shape = weights.infer_architecture(model.state_dict())
    assert shape == {
        "nodes": [first.num_nodes, second.num_nodes],
        "width": width,
        "in_chans": 4,
        "topology": [first, second],
    }


def test_build_from_the_file_alone(published):
    model, files = published
    image = torch.randn(1, 3, 64, 64)
    assert torch.equal(weights.build(files.pth).eval()(image), model.forward_head(model.forward_features(image), True))
    assert weights.build(files.pth, num_classes=7)(image.repeat(2, 1, 1, 1)).shape == (2, 7)


def test_averaged_weights_are_preferred(tmp_path):
    last, averaged = trained(), trained()
    path = checkpoint(tmp_path / "c.pth.tar", last, state_dict_ema=averaged.state_dict())
    assert torch.equal(weights.read(path).state_dict["stem.conv.weight"], averaged.stem.conv.weight)
    files = weights.publish(path, tmp_path)
    assert json.loads(files.card.read_text())["weights"] == "ema"
    assert torch.equal(weights.read(files.pth).state_dict["stem.conv.weight"], averaged.stem.conv.weight)


def test_publishing_again_gives_the_same_file(published, tmp_path):
    model, files = published
    again = weights.publish(checkpoint(tmp_path / "last.pth.tar", model), tmp_path, notes="nothing real")
    assert sha256(again.pth) == sha256(files.pth)


def test_fixed_edges_and_norm_are_remembered(tmp_path):
    arguments = {"edge_weights": "fixed", "norm_layer": "groupnorm1"}
    path = checkpoint(tmp_path / "c.pth.tar", trained(**arguments), args={"model_kwargs": arguments})
    rebuilt = weights.build(weights.publish(path, tmp_path).pth)
    assert not rebuilt.stages[0].wiring.learned
    assert isinstance(rebuilt.stem.norm, torch.nn.GroupNorm)


# Bad files


class Payload:
    def __reduce__(self):
        return (os.mkdir, (self.path,))


def test_a_pickle_is_refused_and_not_executed(tmp_path):
    Payload.path = str(tmp_path / "executed")
    for name, write in (("torch.pth", torch.save), ("plain.pth", lambda x, p: p.write_bytes(pickle.dumps(x)))):
        write({"state_dict": Payload()}, tmp_path / name)
        with pytest.raises(WeightsError, match=f"{name} is refused: .* Nothing in it was executed"):
            weights.read(tmp_path / name)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("form", ["pth", "safetensors"])
@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.999])
def test_a_truncated_file_is_named(published, tmp_path, form, keep):
    content = getattr(published[1], form).read_bytes()
    path = tmp_path / f"cut.{form}"
    path.write_bytes(content[: keep if isinstance(keep, int) else int(keep * len(content))])
    with pytest.raises(WeightsError, match=rf"cut.{form} .*(truncated|refused)"):
        weights.read(path)


@pytest.mark.parametrize("form", ["pth", "safetensors"])
def test_changed_bytes_are_noticed(published, tmp_path, form):
    original = getattr(published[1], form)
    content = bytearray(original.read_bytes())
    content[len(content) // 2] ^= 1
    path = tmp_path / original.name
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="is damaged or was changed"):
        weights.read(path)


def test_values_that_are_not_finite_are_named(tmp_path):
    model = trained()
    with torch.no_grad():
        model.stages[1].nodes[2].conv_pw.weight[0, 0] = float("nan")
    with pytest.raises(
        WeightsError, match=r"stages.1.nodes.2.conv_pw.weight has 1 value\(s\) that are NaN or infinite"
    ):
        weights.read(checkpoint(tmp_path / "c.pth.tar", model))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: timm.create_model("toponet_small"), "stem.conv.weight is [16, 3, 7, 7] in the file and [32, 3, 7, 7]"),
        (lambda: timm.create_model("resnet18"), "missing in the file: conv1.weight"),
        (lambda: timm.create_model("toponet_nano", norm_layer="groupnorm1"), "unknown to the model: stem.norm.running"),
        (lambda: timm.create_model("toponet_nano", in_chans=1), "in the file and [16, 1, 7, 7] in the model"),
        (
            lambda: timm.create_model("toponet_nano", topology="residual"),
            "stages.0.wiring.edges: the file has a different",
        ),
    ],
)
def test_another_network_is_refused(published, model, message):
    with pytest.raises(WeightsError, match=re.escape(message)):
        weights.load(model(), published[1].pth)


def test_another_head_is_refused_when_asked_for(published, tmp_path):
    path = checkpoint(tmp_path / "c.pth.tar", published[0])
    model = timm.create_model("toponet_nano", num_classes=9)
    with pytest.raises(
        WeightsError, match=re.escape("head.fc.weight is [5, 256] in the file and [9, 256] in the model")
    ):
        weights.load(model, path, head=True)
    with pytest.raises(WeightsError, match=re.escape("missing in the file: head.fc.weight, head.fc.bias")):
        weights.load(model, published[1].pth, head=True)
    same = timm.create_model("toponet_nano", num_classes=5)
    assert weights.load(same, path, head=True).total == len(same.state_dict())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "contains a list, expected a state dict"),
        ({}, "has no state dict (empty)"),
        ({"epoch": 3}, "has no state dict ('epoch' is a int)"),
        ({"state_dict": {"a": 1.0}}, "has no state dict ('a' is a float)"),
    ],
)
def test_files_without_tensors_are_named(tmp_path, content, message):
    torch.save(content, tmp_path / "c.pth")
    with pytest.raises(WeightsError, match=re.escape(message)):
        weights.read(tmp_path / "c.pth")


def test_publishing_something_else_is_refused(tmp_path):
    path = checkpoint(tmp_path / "c.pth.tar", timm.create_model("resnet10t", num_classes=2))
    with pytest.raises(WeightsError, match="not the tensors of a TopoNet"):
        weights.publish(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_missing_files_are_named(tmp_path):
    with pytest.raises(WeightsError, match="no weights file at .*nothing.pth"):
        weights.read(tmp_path / "nothing.pth")


def test_urls_are_fetched_once_and_checked(published, tmp_path, monkeypatch):
    import http.server
    import threading

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    folder = published[1].pth.parent
    served = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(folder))

        def log_message(self, *_):
            served.append(self.path)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/{published[1].pth.name}"
        for _ in range(2):
            assert weights.read(url).card["name"] == "toponet_nano"
        assert len(served) == 1
        with pytest.raises(WeightsError, match="could not download .*nothing.pth"):
            weights.read(url.replace(published[1].pth.name, "nothing.pth"))
        server.shutdown()


def test_preprocessing_is_compared_with_the_card():
    card = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "channel_order": "RGB"}
    usual = {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]}
    assert weights.preprocessing_problems(card, **usual, channel_order="RGB") == []
    swapped = {key: value[::-1] for key, value in usual.items()}
    (problem,) = weights.preprocessing_problems(card, **swapped, channel_order="BGR")
    assert "feeds BGR images, the weights were trained on RGB" in problem
    assert weights.preprocessing_problems({"mean": None}, **swapped, channel_order="BGR")  # an older card
    unknown = {"mean": None, "std": None, "channel_order": None}  # a detector from random weights, published before
    assert weights.preprocessing_problems(unknown, **swapped, channel_order="BGR") == []
    caffe = {"mean": [103.53, 116.28, 123.675], "std": [1.0, 1.0, 1.0]}
    problems = weights.preprocessing_problems(card, **caffe, channel_order="RGB")
    assert "mean is [103.53, 116.28, 123.675], the weights were trained with [123.675, 116.28, 103.53]" in problems[0]
    assert "std is [1.0, 1.0, 1.0]" in problems[1]


def test_what_pruning_leaves_is_published(tmp_path):
    model = trained()
    with torch.no_grad():
        for stage in model.stages:
            stage.wiring.alpha.normal_()
    path = checkpoint(tmp_path / "last.pth.tar", model)
    files = weights.publish(path, tmp_path / "out", prune={"keep": 0.6, "per": "node"})
    small = connectivity.prune(model, keep=0.6, per="node")
    back = weights.build(files.safetensors, num_classes=0).eval()
    assert back.topologies == small.topologies != model.topologies
    image = torch.randn(1, 3, 64, 64)
    assert torch.equal(back.forward_features(image), small.forward_features(image))
    card = json.loads(files.card.read_text())
    assert (card["pruned"], card["metrics"]) == ({"keep": 0.6, "per": "node"}, {})
    assert card["nodes"] == [graph.num_nodes for graph in small.topologies]
    assert card["parameters"] == sum(p.numel() for p in back.parameters())
    with pytest.raises(ConfigError, match="the input no longer reaches the output"):
        weights.publish(path, tmp_path / "torn", prune={"threshold": 100})
    assert not (tmp_path / "torn").exists()
