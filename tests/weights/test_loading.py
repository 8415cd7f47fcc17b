"""What fills a network outside of the frameworks: every way refuses what does not fit, and what was changed."""

import functools
import http.server
import logging
import threading

import pytest
import timm
import torch
from safetensors.torch import save_file

from tests.weights.helpers import DATA_CONFIG, checkpoint
from topodet import weights
from topodet.errors import ConfigError, WeightsError
from topodet.models import connect
from topodet.weights.model_options import check_network

NAME = "toponet_nano"
WRONG = {
    "architecture": "size mismatch|a different topology|in the file and",
    "topology": "a different topology",
    "dtype": "is int32 in the file and float32 in the model",
    "a tensor less": "[Mm]issing",
    "bytes": "damaged or was changed",
}


def tensors(wrong=None):
    torch.manual_seed(1)
    options = {"topology": "residual"} if wrong == "topology" else {}
    model = timm.create_model("toponet_small" if wrong == "architecture" else NAME, num_classes=0, **options)
    found = model.state_dict()
    if wrong == "dtype":
        found["stem.conv.weight"] = found["stem.conv.weight"].int()
    if wrong == "a tensor less":
        del found["stages.1.nodes.2.conv_pw.weight"]
    return found


def file(folder, wrong):
    content = weights.with_digests({"state_dict": tensors(wrong), "card": {"architecture": NAME}})
    if wrong == "bytes":
        content["state_dict"]["stem.conv.weight"] += 1
    torch.save(content, folder / "a.pth")
    return str(folder / "a.pth")


def made(on_meta=False):
    with torch.device("meta" if on_meta else "cpu"):
        return timm.create_model(NAME, num_classes=0)


def loaded(model, state_dict, **options):
    model.load_state_dict(state_dict, **options)
    return model


def with_load(model, path):
    weights.load(model, path)
    return model


# Those that open the file themselves, and those that are given tensors alone.
READERS = {
    "weights.load": lambda path: with_load(made(), path),
    "weights.load, meta": lambda path: with_load(made(on_meta=True), path),
}
OF_TENSORS = {
    "load_state_dict": lambda path: loaded(made(), torch.load(path)["state_dict"]),
    "assign": lambda path: loaded(made(), torch.load(path)["state_dict"], assign=True),
    "meta, assign": lambda path: loaded(made(on_meta=True), torch.load(path)["state_dict"], assign=True),
    "meta, to_empty": lambda path: loaded(made(on_meta=True).to_empty(device="cpu"), torch.load(path)["state_dict"]),
    "timm's checkpoint_path": lambda path: timm.create_model(NAME, num_classes=0, checkpoint_path=path),
    "features_only": lambda path: timm.create_model(NAME, features_only=True, checkpoint_path=path),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("way", READERS | OF_TENSORS)
def test_what_does_not_fit_is_refused(tmp_path, way, wrong):
    if way in OF_TENSORS and wrong == "bytes":
        pytest.skip("it is given tensors, and no file whose digest could be compared")
    with pytest.raises((WeightsError, RuntimeError), match=WRONG[wrong]):
        (READERS | OF_TENSORS)[way](file(tmp_path, wrong))


@pytest.mark.parametrize("way", READERS | OF_TENSORS)
def test_what_fits_fills_it_and_says_so(tmp_path, way, capsys, caplog):
    caplog.set_level(logging.INFO, "topodet")
    model = (READERS | OF_TENSORS)[way](file(tmp_path, None)).eval()
    for name, tensor in tensors().items():
        assert torch.equal(model.state_dict()[name], tensor)
    output = model(torch.randn(1, 3, 64, 64))  # also what no file has is there
    assert torch.isfinite(output if isinstance(output, torch.Tensor) else output[-1]).all()
    count = len(tensors())
    assert f"topodet: {count}/{count} tensors" in caplog.text + capsys.readouterr().out


def test_a_connected_network_keeps_what_a_file_lacks():
    """A file of the classifier alone says nothing of the edges; one of the original sets them to the start."""
    original = timm.create_model("mobilenetv2_050", num_classes=5)
    model = connect(original)
    alphas = [parameter for name, parameter in model.named_parameters() if name.endswith("alpha")]
    for alpha in alphas:
        torch.nn.init.constant_(alpha, 0.5)
    state = timm.create_model("mobilenetv2_050", num_classes=5).state_dict()
    model.load_state_dict({name: value for name, value in state.items() if "classifier" in name}, strict=False)
    assert all((alpha == 0.5).all() for alpha in alphas)
    model.load_state_dict(state)
    assert all((alpha == 1).all() for alpha in alphas)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod."])
def test_wrappers_are_taken_off_and_said(tmp_path, prefix, capsys):
    torch.save({"state_dict": {f"{prefix}{name}": tensor for name, tensor in tensors().items()}}, tmp_path / "a.pth")
    model = made()
    weights.load(model, tmp_path / "a.pth")
    assert f"(names without the prefix {prefix!r} of a wrapper)" in capsys.readouterr().out
    assert torch.equal(model.stem.conv.weight, tensors()["stem.conv.weight"])


def test_wrappers_of_parts_and_of_averages_are_taken_off(tmp_path):
    expected, path = tensors(), tmp_path / "a.pth"
    model = made()
    model.load_state_dict(expected)
    averaged = torch.optim.swa_utils.AveragedModel(torch.compile(model, backend="eager"))
    model.stages[1] = torch.compile(model.stages[1], backend="eager")
    for state, said in ((model.state_dict(), "_orig_mod."), (averaged.state_dict(), "module._orig_mod.")):
        torch.save(state, path)
        other = made()
        assert f"without the prefix {said!r}" in str(weights.load(other, path, quiet=True))
        assert all(torch.equal(tensor, expected[name]) for name, tensor in other.state_dict().items())


def test_a_training_checkpoint_tells_what_images_it_was_shown(tmp_path):
    path = checkpoint(tmp_path / "c.pth.tar", timm.create_model(NAME, num_classes=5))
    report = weights.load(made(), path, quiet=True)
    assert report.card["mean"] == list(DATA_CONFIG["mean"])
    assert (report.card["channel_order"], report.card["architecture"], report.doubt) == ("RGB", NAME, "")
    torch.save(tensors(), tmp_path / "bare.pth")
    assert "does not say what images" in weights.load(made(), tmp_path / "bare.pth", quiet=True).doubt


@pytest.mark.parametrize("dtype", [torch.int32, torch.bool, torch.complex64, torch.float8_e4m3fn])
@pytest.mark.parametrize("form", ["pth", "safetensors"])
def test_other_dtypes_are_refused_by_name(tmp_path, dtype, form):
    state = tensors()
    state["stem.conv.weight"] = state["stem.conv.weight"].to(dtype)
    path = tmp_path / f"a.{form}"
    save_file(state, path) if form == "safetensors" else torch.save(state, path)
    with pytest.raises(WeightsError, match=f"stem.conv.weight is {str(dtype).removeprefix('torch.')}"):
        weights.load(made(), path)


def test_half_precision_fits(tmp_path):
    torch.save({name: t.half() if t.is_floating_point() else t for name, t in tensors().items()}, tmp_path / "a.pth")
    model = made()
    weights.load(model, tmp_path / "a.pth", quiet=True)
    assert model.stem.conv.weight.dtype == torch.float32


def test_a_changed_card_or_tensor_is_noticed_under_any_name(tmp_path):
    files = weights.publish(checkpoint(tmp_path / "c.pth.tar", timm.create_model(NAME, num_classes=5)), tmp_path)
    copy = tmp_path / f"{files.pth.stem} (1).pth"
    copy.write_bytes(files.pth.read_bytes() + b"x")
    with pytest.raises(WeightsError, match="its name says SHA-256"):
        weights.read(copy)
    content = torch.load(files.pth, weights_only=True)
    content["card"]["mean"][0] += 0.1
    torch.save(content, tmp_path / "card.pth")
    with pytest.raises(WeightsError, match="card does not match the digest that the file states"):
        weights.read(tmp_path / "card.pth")
    bytes_ = files.safetensors.read_bytes()
    (tmp_path / "a.safetensors").write_bytes(bytes_.replace(b"0.485", b"0.585"))
    with pytest.raises(WeightsError, match="its card does not match the digest it states"):
        weights.read(tmp_path / "a.safetensors")
    old = {key: value for key, value in torch.load(files.pth, weights_only=True).items() if key != "sha256"}
    torch.save(old, tmp_path / "old.pth")  # of an earlier version
    assert weights.read(tmp_path / "old.pth").card["architecture"] == NAME


def test_two_addresses_that_end_in_the_same_name(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    for folder, value in (("a", 1.0), ("b", 2.0)):
        (tmp_path / folder).mkdir()
        torch.save({"w": torch.full((2,), value)}, tmp_path / folder / "model.pth")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for folder, value in (("a", 1.0), ("b", 2.0)):
            file = weights.read(f"http://127.0.0.1:{server.server_port}/{folder}/model.pth")
            assert file.state_dict["w"][0] == value
        server.shutdown()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("hf-hub:someone/evil", {}, "refers to other files"),
        ("../evil", {}, "refers to other files"),
        ("resnet18", {"checkpoint_path": "/etc/passwd"}, "may refer to other files or to code"),
        ("resnet18", {"pretrained_cfg_overlay": {"file": "x"}}, "pretrained_cfg_overlay"),
        ("resnet18", {"features_only": True}, "features_only"),
        ("convnext_atto", {"depths": [10**4] * 4}, "the file contains 3 tensors"),
        ("convnext_atto", {"dims": [10**9] * 4}, "the file contains 3 tensors"),
        ("resnet18", [1], "the options of its network are not a dict"),
    ],
)
def test_a_file_does_not_choose_more_than_shapes(tmp_path, name, options, message):
    with pytest.raises(WeightsError, match=message):
        check_network(tmp_path / "a.pth", name, options, range(3))


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ({"architecture": "vit_giant_patch14_clip_224", "wiring": "none"}, r"describes a network of [\d,]+ values"),
        ({"architecture": "resnet18", "wiring": "none", "options": {"width": 1}}, "may refer to|cannot be built"),
        ([1, 2], "its card is a list"),
        ({"mean": ["a"]}, "mean is"),
        ({"options": 3}, "options is a int"),
        ({"architecture": 3}, "architecture is a int"),
    ],
)
def test_cards_that_ask_for_too_much_or_are_none(tmp_path, card, message):
    torch.save({"state_dict": {"fc.weight": torch.ones(2, 2)}, "card": card}, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=message):
        weights.build(tmp_path / "a.pth")


def test_graphs_that_are_larger_than_the_file():
    state = tensors()
    state["stages.0.wiring.edges"][-1, 1] = 10**8
    with pytest.raises(WeightsError, match="nodes up to 100000000; at most 1,000,000 edges of 10,000 nodes"):
        weights.infer_architecture(state)
    state["stages.0.wiring.edges"] = torch.tensor([[k, k + 1] for k in range(999)])
    with pytest.raises(WeightsError, match="stage 0 has 1000 nodes of 32 channels, but node 4 is missing"):
        weights.infer_architecture(state)


@pytest.mark.parametrize("name", ["../../evil", "/abs/evil", "a/b", "a\0b"])
def test_names_do_not_become_paths(tmp_path, name):
    model = timm.create_model(NAME, num_classes=5)
    path = checkpoint(tmp_path / "c.pth.tar", model)
    with pytest.raises(ConfigError, match="cannot be a file name"):
        weights.publish(path, tmp_path / "out", name=name)
    path = checkpoint(tmp_path / "c.pth.tar", model, arch=name)
    with pytest.raises(WeightsError, match="cannot be a file name|NUL"):
        weights.publish(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
