import pytest
import timm

from tests.commands.helpers import run_command
from tests.weights.helpers import checkpoint
from topodet import weights


def test_it_writes_and_verifies_three_files(tmp_path, capsys):
    path = checkpoint(tmp_path / "c.pth.tar", timm.create_model("toponet_nano", num_classes=2))
    assert run_command("publish", [str(path), "--output", str(tmp_path / "out"), "--name", "mine", "--notes", "x"]) == 0
    out = capsys.readouterr().out
    assert "147/147 tensors" in out
    assert sorted(p.suffix for p in (tmp_path / "out").glob("mine-*")) == [".json", ".pth", ".safetensors"]


def test_a_bad_checkpoint_is_told_without_traceback(tmp_path, capsys):
    (tmp_path / "c.pth").write_bytes(b"no checkpoint")
    assert run_command("publish", [str(tmp_path / "c.pth"), "--output", str(tmp_path)]) == 1
    assert "error: " in capsys.readouterr().err


def test_an_unreachable_hub_keeps_the_files(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "none")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    path = checkpoint(tmp_path / "c.pth.tar", timm.create_model("toponet_nano", num_classes=2))
    assert run_command("publish", [str(path), "--output", str(tmp_path / "out"), "--hub", "somebody/toponet"]) == 1
    assert "error: " in capsys.readouterr().err
    assert len(list((tmp_path / "out").iterdir())) == 3


def test_it_publishes_what_pruning_leaves(tmp_path, capsys):
    model = timm.create_model("toponet_nano", num_classes=2)
    for stage in model.stages:
        stage.wiring.alpha.data[1] = 0.01  # from the input to node 2
    path = checkpoint(tmp_path / "c.pth.tar", model)
    argv = [str(path), "--output", str(tmp_path / "out"), "--threshold", "0.5", "--per", "stage"]
    assert run_command("publish", argv) == 0
    (pth,) = (tmp_path / "out").glob("*.pth")
    assert [graph.num_edges for graph in weights.build(pth).topologies] == [5, 9, 14, 5]
    with pytest.raises(SystemExit):
        run_command("publish", ["--detector", "x.pth", "--keep", "0.5"])
    assert "--hub, --head and the pruning options are for backbones" in capsys.readouterr().err
