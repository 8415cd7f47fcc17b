"""Weights of networks that timm has, plain, connected and rewired: published, loaded, rebuilt, refused."""

import json
import re

import pytest
import timm
import torch

from tests.commands.helpers import run_command
from tests.detection import IMAGENET
from tests.models.connected.helpers import randomize, scatter
from topodet import connectivity, weights
from topodet.errors import WeightsError
from topodet.models import TimmTrunk, create_timm_network, rewire
from topodet.weights import hub

SMALL_CONVNEXT = {"depths": [1, 2, 1, 1], "dims": [8, 16, 24, 32]}
KINDS = {
    "plain": ("mobilenetv2_050", "none", False, {}),
    "connected": ("mobilenetv2_050", "learned", False, {}),
    "fixed": ("mobilenetv2_050", "fixed", False, {}),
    "convnext": ("convnext_atto", "learned", False, SMALL_CONVNEXT),
    "rewired": ("resnet18", "learned", True, {"layers": [1, 1, 1, 1]}),
    "resnet": ("resnet18", "none", False, {"layers": [1, 1, 1, 1]}),
}


def trained(kind):
    """Return a network whose tensors differ from a new one's, and the checkpoint that pretraining makes of it."""
    name, wiring, rewire, options = KINDS[kind]
    model = create_timm_network(name, wiring=wiring, rewire=rewire, num_classes=5, **options)
    scatter(randomize(model)).eval()
    edges = {} if wiring == "none" else {"rewire" if rewire else "connect": wiring}
    args = {"model": name, "model_kwargs": options, "connect": None, "rewire": None, "lr": 0.1, **edges}
    state = {"arch": name, "state_dict": model.state_dict(), "args": args, "data_config": IMAGENET, "epoch": 3}
    return model, state


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Return a function from a kind to the network and its published files."""
    made = {}

    def get(kind):
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            torch.manual_seed(len(made))
            model, state = trained(kind)
            torch.save(state, folder / "last.pth.tar")
            made[kind] = model, weights.publish(folder / "last.pth.tar", folder / "out")
        return made[kind]

    return get


def trunk(kind, **changes):
    name, wiring, rewire, options = KINDS[kind]
    return TimmTrunk(name, **{"wiring": wiring, "rewire": rewire, "options": options, **changes})


def maps(model, x):
    return model.forward_intermediates(x, intermediates_only=True)


@pytest.mark.parametrize(("kind", "form"), [*((kind, "pth") for kind in KINDS), ("connected", "safetensors")])
def test_a_published_file_gives_back_the_network(published, kind, form, capsys):
    model, files = published(kind)
    file = weights.read(getattr(files, form))
    name, wiring, rewire, options = KINDS[kind]
    card = file.card
    assert (card["architecture"], card["wiring"], card["rewire"], card["options"]) == (name, wiring, rewire, options)
    assert card["mean"] == list(IMAGENET["mean"])
    graphs = connectivity.wirings(model)
    assert card["wirings"] == list(graphs)
    assert card["topology"] == [json.loads(wiring.topology.to_json()) for wiring in graphs.values()]
    classifier = model.pretrained_cfg["classifier"]
    assert set(file.state_dict) == {key for key in model.state_dict() if not key.startswith(f"{classifier}.")}

    x = torch.randn(1, 3, 64, 64)
    rebuilt = weights.build(file).eval()
    assert torch.equal(rebuilt(x), model.forward_head(model.forward_features(x), pre_logits=True))
    assert [w.learned for w in connectivity.wirings(rebuilt).values()] == [w.learned for w in graphs.values()]
    assert weights.build(file, num_classes=7)(x).shape == (1, 7)

    backbone = trunk(kind).eval()
    report = weights.load(backbone, file)
    assert report.loaded == report.total == len(backbone.state_dict())
    assert report.left_out == ()
    assert f"{report.total}/{report.total} tensors" in capsys.readouterr().out
    for ours, theirs in zip(backbone.stage_features(x), maps(model, x)[-4:], strict=True):
        assert torch.equal(ours, theirs)


def test_whole_blocks_as_nodes_are_published_pruned_and_rebuilt(tmp_path):
    options = {"layers": [3, 1, 1, 1], "channels": [64, 8, 8, 8]}
    model = create_timm_network("resnet18", connect_nodes="blocks", num_classes=5, **options)
    scatter(randomize(model)).eval()
    args = {"model": "resnet18", "model_kwargs": options, "connect": "learned", "connect_nodes": "blocks"}
    state = {"arch": "resnet18", "state_dict": model.state_dict(), "args": args, "data_config": IMAGENET}
    torch.save(state, tmp_path / "last.pth.tar")
    x = torch.randn(1, 3, 64, 64)
    for prune in (None, {"keep": 0.5, "per": "node"}):
        files = weights.publish(tmp_path / "last.pth.tar", tmp_path / "out", prune=prune)
        rebuilt = weights.build(files.pth).eval()
        expected = connectivity.prune(model, **prune) if prune else model
        assert torch.equal(rebuilt(x), expected.forward_head(expected.forward_features(x), pre_logits=True))
    file = weights.read(files.pth)
    assert file.card["connect_nodes"] == "blocks"
    with pytest.raises(WeightsError, match="the file has connect_nodes=blocks, the config asks for connect_nodes=auto"):
        weights.load(
            TimmTrunk("resnet18", connect_nodes="auto", options=options, edges=weights.run_edges(file.state_dict)), file
        )


def test_a_checkpoint_that_does_not_say_its_nodes(tmp_path):
    options = {"layers": [3, 1, 1, 1], "channels": [64, 8, 8, 8]}
    model = create_timm_network("resnet18", connect_nodes="auto", **options)
    state = {"arch": "resnet18", "state_dict": model.state_dict(), "args": {"model_kwargs": options}}
    torch.save({**state, "data_config": IMAGENET}, tmp_path / "last.pth.tar")
    with pytest.raises(WeightsError, match=r"nodes='auto'.* does not say which nodes.*'connect_nodes': 'auto'"):
        weights.publish(tmp_path / "last.pth.tar", tmp_path / "out")
    state["args"] |= {"connect": "learned", "connect_nodes": "auto"}
    torch.save({**state, "data_config": IMAGENET}, tmp_path / "last.pth.tar")
    files = weights.publish(tmp_path / "last.pth.tar", tmp_path / "out")
    assert weights.read(files.pth).card["connect_nodes"] == "auto"


def test_the_tool_publishes_and_verifies(published, tmp_path, capsys):
    model, state = trained("connected")
    torch.save(state, tmp_path / "last.pth.tar")
    assert (
        run_command("publish", [str(tmp_path / "last.pth.tar"), "--output", str(tmp_path / "out"), "--name", "m"]) == 0
    )
    total = len(model.state_dict()) - 2  # without the classifier
    assert f"{total}/{total} tensors verified in both files" in capsys.readouterr().out


def test_a_shorter_backbone_reads_its_part(published):
    model, files = published("connected")
    short = trunk("connected", num_stages=2).eval()
    report = weights.load(short, files.pth)
    assert report.loaded == report.total == len(short.state_dict())
    x = torch.randn(1, 3, 64, 64)
    for ours, theirs in zip(short.stage_features(x), maps(model, x)[1:3], strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("form", ["published", "as timm has it"])
def test_a_file_of_the_original_is_the_connected_networks_start(published, form, tmp_path):
    model, files = published("plain")
    torch.save(model.state_dict(), tmp_path / "bare.pth")  # with the classifier
    connected = scatter(trunk("connected")).eval()
    report = weights.load(connected, files.pth if form == "published" else tmp_path / "bare.pth")
    assert report.left_out == tuple(f"blocks.{k}.1.wiring" for k in (1, 2, 3, 4, 5))
    assert report.loaded == report.total == len(connected.state_dict()) - 2 * 5
    assert all((wiring.alpha == 1).all() for wiring in connectivity.wirings(connected).values())
    x = torch.randn(1, 3, 64, 64)
    for ours, theirs in zip(connected.stage_features(x), maps(model, x)[1:], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("file", "model", "message"),
    [
        (
            "connected",
            "plain",
            "(mobilenetv2_050) does not fit TimmTrunk: the file has wiring='learned', the config asks for "
            "wiring='none'; unknown to the model: blocks.1.1.wiring.alpha, blocks.1.1.wiring.edges",
        ),
        (
            "convnext",
            "connected",
            "the file is convnext_atto, the config asks for mobilenetv2_050; missing in the file",
        ),
        ("rewired", "resnet", "the file has wiring='learned', the config asks for wiring='none'; unknown to the model"),
        ("resnet", "rewired", "the file has rewire=False, the config asks for rewire=True: such a network computes"),
    ],
)
def test_other_networks_are_refused(published, file, model, message):
    with pytest.raises(WeightsError, match=re.escape(message)):
        weights.load(trunk(model), published(file)[1].pth)


@pytest.mark.parametrize("name", ["resnet20_cifar", "resnet18"])
def test_a_rewired_network_takes_no_weights_of_the_original(name, tmp_path):
    """Whether it is rewired by its name or by an option, and whether or not a card tells."""
    options = {"layers": [1, 1, 1, 1]} if name == "resnet18" else {}
    original = timm.create_model(name, num_classes=5, **options)
    torch.save(original.state_dict(), tmp_path / "bare.pth")
    rewired = timm.create_model(f"{name}_connected", num_classes=5) if not options else rewire(original)
    with pytest.raises(WeightsError, match=r"missing in the file: layer1.0.wiring.alpha"):
        weights.load(rewired, tmp_path / "bare.pth", head=True)
    rewired.load_state_dict(original.state_dict())  # to start a training it is welcome


def test_half_a_wiring_or_another_one_is_refused(published, tmp_path):
    state = dict(weights.read(published("connected")[1].pth).state_dict)
    edges = state.pop("blocks.2.1.wiring.edges")
    torch.save(state, tmp_path / "half.pth")
    with pytest.raises(WeightsError, match=r"missing in the file: blocks.2.1.wiring.edges"):
        weights.load(trunk("connected"), tmp_path / "half.pth")
    torch.save({**state, "blocks.2.1.wiring.edges": edges.flip(0)}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match="blocks.2.1.wiring.edges: the file has a different topology"):
        weights.load(trunk("connected"), tmp_path / "other.pth")


def test_a_bare_state_dict_is_published_by_its_architectures_name(tmp_path):
    model, _ = trained("connected")
    torch.save(model.state_dict(), tmp_path / "bare.pth")
    with pytest.raises(WeightsError, match="does not say which network it was trained as"):
        weights.publish(tmp_path / "bare.pth", tmp_path)
    files = weights.publish(tmp_path / "bare.pth", tmp_path, architecture="mobilenetv2_050")
    assert weights.read(files.pth).card["wiring"] == "learned"


@pytest.mark.parametrize("form", ["trained", "fixed", "frozen", "bare"])
@pytest.mark.parametrize("name", ["resnet20_cifar_connected", "mobilenetv2_x1_connected"])
def test_a_network_that_is_connected_by_its_name(name, form, tmp_path):
    """No option of the training says so."""
    options = {"edge_weights": "fixed"} if form == "fixed" else {}
    model = scatter(randomize(timm.create_model(name, num_classes=5, **options))).eval()
    args = {"model": name, "model_kwargs": options, "connect": None, "rewire": None, "freeze_alpha": form == "frozen"}
    state = {"arch": name, "state_dict": model.state_dict(), "args": args, "data_config": IMAGENET}
    torch.save(model.state_dict() if form == "bare" else state, tmp_path / "last.pth.tar")
    files = weights.publish(tmp_path / "last.pth.tar", tmp_path / "out", architecture=name)

    file = weights.read(files.pth)
    wiring = "learned" if form in ("trained", "bare") else "fixed"
    assert (file.card["architecture"], file.card["wiring"], file.card["rewire"]) == (name, wiring, False)
    assert file.card["wirings"] == list(connectivity.wirings(model))
    classifier = tuple(f"{model.pretrained_cfg['classifier']}.{kind}" for kind in ("weight", "bias"))
    assert set(file.state_dict) == model.state_dict().keys() - set(classifier)

    x = torch.randn(1, 3, 64, 64)
    features = model.forward_head(model.forward_features(x), pre_logits=True)
    for rebuilt in (weights.build(files.safetensors), hub.timm_model(file)[0]):
        assert torch.equal(rebuilt.eval()(x), features)
    assert all(w.learned == (wiring == "learned") for w in connectivity.wirings(weights.build(file)).values())
    if name.startswith("mobilenetv2"):
        backbone = TimmTrunk(name).eval()
        report = weights.load(backbone, file)
        assert report.loaded == report.total == len(backbone.state_dict())
        for ours, theirs in zip(backbone.stage_features(x), maps(model, x)[-4:], strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("kind", ["connected", "rewired"])
def test_edge_weights_that_the_training_froze_are_fixed(kind, tmp_path):
    _, state = trained(kind)
    torch.save({**state, "args": {**state["args"], "freeze_alpha": True}}, tmp_path / "last.pth.tar")
    file = weights.read(weights.publish(tmp_path / "last.pth.tar", tmp_path / "out").pth)
    assert file.card["wiring"] == "fixed"
    assert not any(wiring.learned for wiring in connectivity.wirings(weights.build(file)).values())


@pytest.mark.parametrize("kind", ["connected", "rewired", "fixed"])
def test_a_pruned_network_is_published_and_built_from_its_tensors(kind, published, tmp_path):
    model, state = trained(kind)
    torch.save(state, tmp_path / "last.pth.tar")
    options = {"keep": 0.5, "per": "node"}
    files = weights.publish(tmp_path / "last.pth.tar", tmp_path / "out", prune=options)
    small = connectivity.prune(model, **options).eval()
    x = torch.randn(1, 3, 64, 64)
    for path in (files.pth, files.safetensors):
        file = weights.read(path)
        assert (file.card["pruned"], file.card["metrics"]) == (options, {})
        assert len(file.state_dict) == file.card["tensors"] < len(model.state_dict()) - 2
        rebuilt = weights.build(file).eval()
        assert torch.equal(rebuilt.forward_features(x), small.forward_features(x))
        assert all(w.learned == (kind != "fixed") for w in connectivity.wirings(rebuilt).values())
    backbone = trunk(kind, edges=weights.run_edges(file.state_dict)).eval()
    report = weights.load(backbone, file)
    assert report.loaded == report.total == len(backbone.state_dict())
    for ours, theirs in zip(backbone.stage_features(x), maps(small, x)[-4:], strict=True):
        assert torch.equal(ours, theirs)
    # Pruned again from what was published, it keeps what the card says of the images.
    again = weights.publish(files.pth, tmp_path / "again", prune={"keep": 0.6, "per": "node"})
    twice = weights.read(again.pth).card
    assert [twice[key] for key in ("mean", "std", "epoch", "recipe")] == [
        file.card[key] for key in ("mean", "std", "epoch", "recipe")
    ]
    assert twice["mean"]
    damaged = {**file.state_dict, next(key for key in file.state_dict if key.endswith(".edges")): torch.ones(3)}
    with pytest.raises(WeightsError, match=r"wiring.edges is float32 \[3\], not int64 \[edges, 2\]"):
        weights.build(weights.WeightsFile(files.pth, damaged, file.card))
    # Neither a whole backbone takes it, nor a pruned one a file of the whole network.
    with pytest.raises(WeightsError, match="missing in the file"):
        weights.load(trunk(kind), file)
    with pytest.raises(WeightsError, match="unknown to the model"):
        weights.load(backbone, published(kind)[1].pth)
    plain = trained("resnet" if kind == "rewired" else "plain")[0].state_dict()
    with pytest.raises(WeightsError, match="missing in the file: .*wiring.alpha"):
        weights.load(backbone, weights.WeightsFile(files.pth, plain, {}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"options": {"checkpoint_path": "/etc/passwd"}}, "is refused: its network .* refer.* to other files"),
        ({"architecture": "hf-hub:somebody/something"}, "is refused: its network .* refer.* to other files"),
        ({"architecture": "mobilenetv9"}, "cannot be built here: unknown model 'mobilenetv9'"),
        ({"wiring": "all"}, "cannot be built here: unknown wiring 'all'"),
        ({"options": {"width": [1, {}]}}, "cannot be built here: .*width"),
        ({"in_chans": "three"}, "cannot be built here"),
    ],
)
def test_a_strangers_card_is_not_trusted(published, changes, message):
    file = weights.read(published("connected")[1].pth)
    with pytest.raises(WeightsError, match=message):
        weights.build(weights.WeightsFile(file.path, file.state_dict, {**file.card, **changes}))


def test_the_weights_that_timm_publishes(tmp_path):
    """From a file of timm's own kind, where its hub cannot be asked."""
    original = randomize(timm.create_model("mobilenetv2_050")).eval()
    torch.save(original.state_dict(), tmp_path / "timm.pth")
    options = {"pretrained_cfg_overlay": {"file": str(tmp_path / "timm.pth")}}
    file = weights.from_timm("mobilenetv2_050", **options)
    assert file.card["name"] == "mobilenetv2_050.lamb_in1k"
    assert file.card["mean"] == list(original.pretrained_cfg["mean"])
    backbone = trunk("connected").eval()
    report = weights.load(backbone, file, quiet=True)
    assert report.loaded == report.total
    x = torch.randn(1, 3, 64, 64)
    for ours, theirs in zip(backbone.stage_features(x), maps(original, x)[1:], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    with pytest.raises(WeightsError, match=r"timm/mobilenetv2_050.lamb_in1k \(mobilenetv2_050\) does not fit"):
        weights.load(trunk("convnext"), file)
    with pytest.raises(
        WeightsError, match="timm's weights of toponet_small could not be downloaded: No pretrained weights"
    ):
        weights.from_timm("toponet_small")


def test_the_hub_serves_plain_networks_alone(published, tmp_path):
    model, files = published("plain")
    made, arguments = hub.timm_model(weights.read(files.pth))
    assert arguments == {}
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(made.eval()(x), model.forward_head(model.forward_features(x), pre_logits=True))
    with pytest.raises(WeightsError, match="timm does not connect mobilenetv2_050"):
        hub.timm_model(weights.read(published("connected")[1].pth))
