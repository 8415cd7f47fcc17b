"""Runs that start with the graphs and edge weights of another one: pruned, frozen, or from scratch."""

from __future__ import annotations

import logging
import shutil

import pytest
import torch

from topodet import connectivity, weights
from topodet.errors import ConfigError, WeightsError
from topodet.models import TopoNet
from topodet.pretrain import main

from .helpers import assert_same_tensors, load, options, train


@pytest.fixture(scope="module")
def dense(images, tmp_path_factory):
    """A finished run whose edge weights training has drawn apart."""
    output = tmp_path_factory.mktemp("dense")
    train(images, output)
    state = load(output / "last.pth.tar")
    for name, tensor in state["state_dict"].items():
        if name.endswith("alpha"):
            tensor.normal_()
    torch.save(weights.with_digests(state), output / "last.pth.tar")
    return output / "last.pth.tar"


def network(path):
    """The network of a checkpoint, rebuilt from its tensors."""
    state = load(path)["state_dict"]
    model = TopoNet(**weights.infer_architecture(state), num_classes=3)
    model.load_state_dict(state)
    return model


def alphas(model):
    return connectivity.all_alphas(connectivity.wirings(model).values())


PRUNED = ("--keep", "0.8", "--per", "node", "--freeze-alpha")


def test_retrains_what_pruning_leaves(images, dense, tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="topodet"):
        train(images, tmp_path, "--initial-checkpoint", str(dense), *PRUNED, "--weight-decay", "0.1", "--model-ema")
    expected = connectivity.prune(network(dense), keep=0.8, per="node")
    found = network(tmp_path / "last.pth.tar")
    assert found.topologies == expected.topologies
    assert torch.equal(alphas(found), alphas(expected))  # frozen
    assert not torch.equal(found.stem.conv.weight, expected.stem.conv.weight)
    edges = sum(graph.num_edges for graph in expected.topologies)
    nodes = sum(graph.num_nodes for graph in expected.topologies)
    assert f"pruned from 37 edges of 19 nodes to {edges} edges of {nodes} nodes" in caplog.text
    average = load(tmp_path / "last.pth.tar")["state_dict_ema"]
    assert all(torch.equal(average[key], value) for key, value in found.state_dict().items() if "alpha" in key)


def test_starts_with_the_pruned_weights(images, dense, tmp_path):
    train(images, tmp_path, "--initial-checkpoint", str(dense), *PRUNED, "--lr", "1e-30", "--epochs", "1")
    expected = connectivity.prune(network(dense), keep=0.8, per="node").state_dict()
    found = load(tmp_path / "last.pth.tar")["state_dict"]
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], value) for key, value in expected.items() if "norm" not in key)


def test_a_published_backbone_gets_a_new_classifier(images, dense, tmp_path, capsys):
    files = weights.publish(dense, tmp_path)
    train(images, tmp_path / "tuned", "--initial-checkpoint", str(files.pth), "--lr", "1e-30", "--epochs", "1")
    assert "tensors (left at their initial values: head.fc)" in capsys.readouterr().out
    found = load(tmp_path / "tuned" / "last.pth.tar")["state_dict"]
    given = weights.read(files.pth).state_dict
    new = {name for name in found if name.startswith("head.fc.")}
    assert new == found.keys() - given.keys()
    for name in found.keys() - new:
        if "norm" not in name:
            torch.testing.assert_close(found[name], given[name], rtol=0, atol=1e-20)


def test_resumes_exactly_though_the_first_file_is_gone(images, dense, tmp_path):
    start = shutil.copy(dense, tmp_path / "start.pth.tar")
    more = ("--initial-checkpoint", str(start), *PRUNED, "--model-ema")
    train(images, tmp_path / "whole", *more)
    train(images, tmp_path / "parts", *more)
    state = load(tmp_path / "parts" / "checkpoint-0.pth.tar")
    for path in (tmp_path / "parts").glob("*.pth.tar"):
        path.unlink()
    torch.save(weights.with_digests(state), tmp_path / "parts" / "last.pth.tar")
    start.unlink()
    train(images, tmp_path / "parts", *more, "--resume", "auto")
    left, right = (load(tmp_path / name / "last.pth.tar") for name in ("whole", "parts"))
    assert right["epoch"] == 1
    for key in ("state_dict", "state_dict_ema"):
        assert_same_tensors(left[key], right[key])
    with pytest.raises(ConfigError, match="--keep 0.8 -> 0.4"):
        train(images, tmp_path / "parts", *more, "--keep", "0.4", "--resume", "auto")


def test_is_published_with_its_graphs_and_fixed_weights(images, dense, tmp_path):
    train(images, tmp_path, "--initial-checkpoint", str(dense), *PRUNED, "--epochs", "1")
    files = weights.publish(tmp_path / "last.pth.tar", tmp_path / "published")
    back, trained = weights.build(files.pth), network(tmp_path / "last.pth.tar")
    assert back.topologies == trained.topologies
    assert torch.equal(alphas(back), alphas(trained))
    assert not any(wiring.learned for wiring in connectivity.wirings(back).values())
    assert weights.build(files.pth, edge_weights="learned").stages[0].wiring.learned


def test_a_sampled_topology_from_scratch(images, dense, tmp_path):
    """Fig. 5: the graphs and edge weights of an epoch, everything else anew."""
    train(images, tmp_path / "plain", "--lr", "1e-30", "--epochs", "1")
    train(images, tmp_path / "edges", "--edges-from", str(dense), "--freeze-alpha", "--lr", "1e-30", "--epochs", "1")
    plain, found, sampled = (network(p) for p in (*(tmp_path / n / "last.pth.tar" for n in ("plain", "edges")), dense))
    assert torch.equal(alphas(found), alphas(sampled))
    assert torch.equal(found.stages[1].nodes[2].conv_pw.weight, plain.stages[1].nodes[2].conv_pw.weight)
    assert not torch.equal(found.stem.conv.weight, sampled.stem.conv.weight)


def test_a_pruned_run_is_pruned_again(images, dense, tmp_path):
    train(images, tmp_path / "once", "--initial-checkpoint", str(dense), *PRUNED, "--epochs", "1")
    once = tmp_path / "once" / "last.pth.tar"
    more = ("--initial-checkpoint", str(once), "--threshold", "0.7", "--per", "node", "--epochs", "1")
    with pytest.raises(WeightsError, match=f"does not fit.*--edges-from {once}"):
        train(images, tmp_path / "wrong", *more)
    train(images, tmp_path / "twice", *more, "--edges-from", str(once), "--lr", "1e-30")
    expected = connectivity.prune(network(once), threshold=0.7, per="node")
    found = network(tmp_path / "twice" / "last.pth.tar")
    assert found.topologies == expected.topologies != network(once).topologies
    assert torch.equal(found.stem.conv.weight, expected.stem.conv.weight)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--keep", "0.5"), "pruning needs trained edge weights: give --initial-checkpoint"),
        (("--keep", "0.5", "--threshold", "0.1"), "leave one out"),
        (("--initial-checkpoint", "DENSE", "--keep", "1.5"), "keep=1.5 is out of range"),
        (("--initial-checkpoint", "DENSE", "--threshold", "99"), "the input no longer reaches the output"),
        (("--edges-from", "DENSE", "--model-kwargs", "topology=residual"), "leave topology out of --model-kwargs"),
        (("--edges-from", "gone.pth"), "no weights file at gone.pth"),
        (
            ("--freeze-alpha", "--sparsity", "adaptive"),
            "leaves --sparsity adaptive with nothing to penalize: give --sparsity none",
        ),
        (("--per", "node"), "--per node has no effect on its own: give --keep or --threshold too"),
        (
            ("--initial-checkpoint", "gone.pth"),
            "--initial-checkpoint 'gone.pth' cannot be read: no weights file at gone.pth",
        ),
        (("--freeze-alpha", "--model", "resnet10t"), "ResNet has no edge weights to freeze"),
    ],
)
def test_what_cannot_be_is_told(images, dense, tmp_path, capsys, more, message):
    more = [str(dense) if word == "DENSE" else word for word in more]
    assert main(options(images, tmp_path, *more)) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "last.pth.tar").exists()
