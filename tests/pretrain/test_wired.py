"""Networks of timm that get edges for the training: `--connect` and `--rewire`."""

from __future__ import annotations

import pytest
import timm
import torch

from topodet import connectivity, weights
from topodet.errors import ConfigError, WeightsError
from topodet.pretrain.build import create_model
from topodet.pretrain.command_line import parse
from topodet.pretrain.group import Group

from .helpers import assert_same_tensors, load, train

HERE = Group(0, 1, torch.device("cpu"))


def create(*argv):
    return create_model(parse(argv), num_classes=3, channels=3, group=HERE).eval()


@pytest.fixture(scope="module")
def plain(images, tmp_path_factory):
    """The last checkpoint of a short run of a network without edges."""
    output = tmp_path_factory.mktemp("plain")
    train(images, output, "--model", "test_convnext", "--epochs", "1")
    return output / "last.pth.tar"


def test_weights_of_the_original_are_a_start(plain):
    argv = ("--model", "test_convnext", "--initial-checkpoint", str(plain))
    original, connected = create(*argv), create(*argv, "--connect", "learned")
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(connected(images), original(images))
    assert all(wiring.learned for wiring in connectivity.wirings(connected).values())
    assert not connectivity.wirings(original)


@pytest.mark.parametrize("start", ["published", "checkpoint", "--pretrained"])
def test_a_new_classifier_is_small_and_the_same_with_edges(start, tmp_path, capsys):
    """EfficientNets are built with a classifier of 1 / sqrt(classes), for training from scratch."""
    name = "mobilenetv2_050"
    trained = timm.create_model(name, num_classes=10)
    path = tmp_path / "timm.pth"
    torch.save(trained.state_dict(), path)
    words = ["--model", name]
    if start == "--pretrained":
        words.append(start)
    else:
        published = weights.publish(path, tmp_path / "published", architecture=name).pth
        words += ["--initial-checkpoint", str({"published": published, "checkpoint": path}[start])]

    def started(*more, num_classes=3):
        torch.manual_seed(0)
        options = parse([*words, *more])
        # In place of the file on timm's hub, which cannot be asked here.
        options.model.model_kwargs["pretrained_cfg_overlay"] = {"file": str(path), "num_classes": 10}
        return create_model(options, num_classes=num_classes, channels=3, group=HERE).eval()

    plain, connected = started(), started("--connect", "learned")
    assert torch.equal(plain.conv_stem.weight, trained.conv_stem.weight)
    assert 0 < plain.classifier.weight.abs().max() <= plain.num_features**-0.5 < 0.03
    assert torch.equal(connected.classifier.weight, plain.classifier.weight)
    assert started("--gp", "max").global_pool.pool_type == "max"
    assert create("--model", name).classifier.weight.abs().max() > 0.1
    assert start == "--pretrained" or "(left at their initial values: classifier)" in capsys.readouterr().out
    if start != "published":
        assert torch.equal(started(num_classes=10).classifier.weight, trained.classifier.weight)


def test_a_classifier_that_is_not_whole_is_refused(plain, tmp_path):
    tensors = load(plain)["state_dict"]
    del tensors["head.fc.bias"]
    torch.save(tensors, tmp_path / "damaged.pth.tar")
    with pytest.raises(WeightsError, match="does not fit the model: .* missing in the file: head.fc.bias"):
        create("--model", "test_convnext", "--initial-checkpoint", str(tmp_path / "damaged.pth.tar"))


def test_trains_and_resumes(images, plain, tmp_path):
    more = ("--model", "test_convnext", "--connect", "learned", "--initial-checkpoint", str(plain))
    more += ("--sparsity", "adaptive", "--sparsity-weight", "0.01")
    rows = train(images, tmp_path / "whole", *more)
    assert rows[0]["penalty"] > rows[1]["penalty"] > 0
    path = tmp_path / "whole" / "last.pth.tar"
    last = load(path)
    assert (last["arch"], last["args"]["connect"], last["args"]["rewire"]) == ("test_convnext", "learned", None)
    alphas = [value for name, value in last["state_dict"].items() if name.endswith("wiring.alpha")]
    assert alphas
    assert all(bool((alpha != 1).any()) for alpha in alphas)
    # Its checkpoint is a start for another run, edge weights and all.
    again = create("--model", "test_convnext", "--connect", "learned", "--initial-checkpoint", str(path))
    assert_same_tensors(again.state_dict(), last["state_dict"])

    (tmp_path / "killed").mkdir()
    torch.save(load(tmp_path / "whole" / "checkpoint-0.pth.tar"), tmp_path / "killed" / "last.pth.tar")
    train(images, tmp_path / "killed", *more, "--resume", "auto")
    assert_same_tensors(load(tmp_path / "killed" / "last.pth.tar")["state_dict"], last["state_dict"])
    with pytest.raises(ConfigError, match="--connect 'learned' -> 'fixed'"):
        train(images, tmp_path / "killed", *more[:3], "fixed", "--resume", "auto")


def test_pruned_retrained_and_resumed(images, tmp_path):
    """What pruning left of a rewired network is trained with frozen edge weights, exactly also after a kill."""
    model = ("--model", "test_resnet", "--rewire", "learned")
    train(images, tmp_path / "dense", *model, "--epochs", "1", "--sparsity", "uniform", "--sparsity-weight", "0.1")
    dense = tmp_path / "dense" / "last.pth.tar"
    pruning = ("--keep", "0.5", "--per", "node", "--freeze-alpha")
    more = (*model, "--initial-checkpoint", str(dense), *pruning)
    train(images, tmp_path / "whole", *more)
    last = load(tmp_path / "whole" / "last.pth.tar")["state_dict"]
    expected = connectivity.prune(create(*model, "--initial-checkpoint", str(dense)), keep=0.5, per="node")
    assert len(last) == len(expected.state_dict()) < len(load(dense)["state_dict"])
    for name, wiring in connectivity.wirings(expected).items():
        assert torch.equal(last[f"{name}.alpha"], wiring.alpha)
        assert torch.equal(last[f"{name}.edges"], wiring.edges)

    (tmp_path / "killed").mkdir()
    torch.save(load(tmp_path / "whole" / "checkpoint-0.pth.tar"), tmp_path / "killed" / "last.pth.tar")
    train(images, tmp_path / "killed", *more, "--resume", "auto")
    assert_same_tensors(load(tmp_path / "killed" / "last.pth.tar")["state_dict"], last)

    # Its graphs are a start for others, from scratch or with all weights.
    path = str(tmp_path / "whole" / "last.pth.tar")
    scratch = create(*model, "--edges-from", path, "--freeze-alpha")
    assert scratch.state_dict().keys() == last.keys()
    assert not torch.equal(scratch.state_dict()["conv1.0.weight"], last["conv1.0.weight"])
    assert_same_tensors(create(*model, "--edges-from", path, "--initial-checkpoint", path).state_dict(), last)
    with pytest.raises(ConfigError, match="--model test_vit --connect learned: unknown run in edges"):
        create("--model", "test_vit", "--connect", "learned", "--edges-from", path)


def test_rewired(images, tmp_path):
    rows = train(images, tmp_path, "--model", "test_resnet", "--rewire", "learned", "--sparsity", "uniform")
    assert rows[0]["penalty"] > 0
    state = load(tmp_path / "last.pth.tar")["state_dict"]
    own = timm.create_model("test_resnet", num_classes=3).state_dict()
    assert set(own) < set(state)
    assert {name.split(".")[-1] for name in set(state) - set(own)} == {"alpha", "edges"}


def test_fixed_edges_are_not_learned():
    model = create("--model", "test_resnet", "--rewire", "fixed")
    assert connectivity.wirings(model)
    assert not any("alpha" in name for name, _ in model.named_parameters())
    with pytest.raises(ConfigError, match="without learned edge weights"):
        create("--model", "test_resnet", "--rewire", "fixed", "--sparsity", "uniform")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ("--model", "test_resnet", "--connect", "learned"),
            "--model test_resnet --connect learned: .*rewire",
        ),
        (("--model", "test_vit", "--rewire", "learned"), "--model test_vit --rewire learned: nothing to"),
        (("--model", "toponet_nano", "--connect", "fixed"), "--model toponet_nano --connect fixed: nothing to"),
        (("--connect", "learned", "--rewire", "learned"), "leave one out"),
        (("--connect", "yes"), "invalid choice: 'yes'"),
    ],
)
def test_refuses(argv, message):
    with pytest.raises(ConfigError, match=message):
        create(*argv)
