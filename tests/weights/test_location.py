"""Where weights are: paths and URLs are in test_weights.py, the hub is here, offline."""

import shutil
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from tests import hub
from tests.weights.helpers import checkpoint
from topodet import weights
from topodet.cli import main
from topodet.errors import WeightsError
from topodet.pretrain.build import create_model
from topodet.pretrain.command_line import parse
from topodet.pretrain.group import Group
from topodet.weights import run_name


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    model = timm.create_model("toponet_nano", num_classes=5)
    return weights.publish(checkpoint(folder / "c.pth.tar", model), folder)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    hub.go_offline(monkeypatch, tmp_path / "hub")
    return tmp_path / "hub"


def test_a_published_file_comes_from_the_hub_with_all_checks(cache, files, tmp_path, capsys):
    hub.put(cache, "me/nano", files.pth, files.safetensors, files.card)
    file = weights.read("hf-hub:me/nano")
    assert file.path.name == files.pth.name
    assert file.card == weights.read(files.pth).card
    assert main(["analyze", "hf-hub:me/nano", "--html", str(tmp_path / "a.html")]) == 0
    assert "toponet_nano" in capsys.readouterr().out
    options = parse(["--model", "toponet_nano", "--initial-checkpoint", "hf-hub:me/nano"])
    model = create_model(options, 3, 3, Group(rank=0, world_size=1, device=torch.device("cpu")))
    assert torch.equal(model.stem.conv.weight, file.state_dict["stem.conv.weight"])

    damaged = tmp_path / files.pth.name
    damaged.write_bytes(files.pth.read_bytes()[:-1] + b"!")
    hub.put(cache, "me/nano", damaged, revision="v2", commit="2" * 40)
    assert weights.read("hf-hub:me/nano@main").state_dict.keys() == file.state_dict.keys()
    with pytest.raises(WeightsError, match="is damaged or was changed: its name says SHA-256"):
        weights.read("hf-hub:me/nano@v2")


def test_what_timm_uploads(cache, tmp_path):
    save_file({"stem.conv.weight": torch.ones(2)}, tmp_path / "model.safetensors")
    hub.put(cache, "timm/some.in1k", tmp_path / "model.safetensors")
    assert weights.read("hf-hub:timm/some.in1k").state_dict["stem.conv.weight"].tolist() == [1, 1]


def test_two_files_are_not_chosen_from(cache, files, tmp_path):
    hub.put(cache, "me/two", files.pth, shutil.copy(files.pth, tmp_path / "other.pth"))
    with pytest.raises(WeightsError, match=r"hf-hub:me/two has 2 weights files \(other.pth, toponet_nano-.*its path"):
        weights.fetch("hf-hub:me/two")


@pytest.mark.parametrize("name", ["me/gone", "me/nano@v3", "me/--bad", "me/nothing"])
def test_what_is_not_there(cache, files, tmp_path, name):
    hub.put(cache, "me/nano", files.pth)
    hub.put(cache, "me/nothing", files.card)
    with pytest.raises(
        WeightsError, match=f"hf-hub:{name} is not in the cache and could not be fetched: .*HF_HUB_OFFL"
    ):
        weights.read(f"hf-hub:{name}")


@pytest.mark.parametrize("name", ["", "nano", "a/b/c", "me/nano@", "me/nano@v 1", "/nano", "../../x/y", "me/nano?a=b"])
def test_malformed_names(name):
    with pytest.raises(WeightsError, match="is not a repository of the hub: expected hf-hub:USER/REPO"):
        weights.read(f"hf-hub:{name}")


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("hf-hub:me/cells", "cells"),
        ("hf-hub:me/cells@main", "cells"),
        ("https://example.org/files/cells-1a2b3c4d.pth?download=1", "cells"),
        ("https://example.org", "detector"),
        ("runs/cells/epoch_12.pth", "cells"),
        (Path("runs/cells/epoch_12.pth"), "cells"),
        ("file:///runs/blood%20cells/epoch_12.pth", "blood cells"),
        ("/epoch_12.pth", "detector"),
    ],
)
def test_the_name_of_a_run(source, name):
    assert run_name(source) == name
