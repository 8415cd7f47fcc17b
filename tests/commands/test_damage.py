import csv
import json
from dataclasses import replace

import pytest
import torch

from tests.commands.helpers import run_command
from tests.pretrain.helpers import train, write_images
from tools import update_model_zoo
from topodet import connectivity, weights
from topodet.analysis import damage_curves as report
from topodet.errors import ConfigError
from topodet.models import TopoNet
from topodet.pretrain.checkpoint import open_checkpoint
from topodet.pretrain.command_line import parse
from topodet.pretrain.engine import accuracy
from topodet.records import runs


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"), {"train": 8, "validation": 7})


@pytest.fixture(scope="module")
def run(images, tmp_path_factory):
    """A short run whose edge weights training has drawn apart, and its scores."""
    output = tmp_path_factory.mktemp("run")
    rows = train(images, output, "--epochs", "8", "--no-aug", "--model-ema", "--model-ema-decay", "0.2")
    return output, rows[-1]


@pytest.fixture(scope="module")
def retrained(images, run, tmp_path_factory):
    output = tmp_path_factory.mktemp("retrained")
    start = run[0] / "last.pth.tar"
    more = ("--initial-checkpoint", str(start), "--keep", "0.8", "--per", "node", "--freeze-alpha")
    return output, train(images, output, *more, "--epochs", "1")[-1]


def test_the_network_comes_back_with_its_scores(images, run):
    output, row = run
    with open_checkpoint(output / "last.pth.tar", ["--workers", "0", "--data-dir", str(images)]) as (model, loader):
        found = accuracy(loader)(model)
    assert {f"ema_eval_{name}": pytest.approx(value) for name, value in found.items()}.items() <= row.items()


def test_a_pruned_network_comes_back_too(images, retrained):
    output, row = retrained
    with open_checkpoint(output / "last.pth.tar", ["--data-dir", str(images)]) as (model, loader):
        assert sum(graph.num_edges for graph in model.topologies) < 37
        assert accuracy(list(loader))(model)["loss"] == pytest.approx(row["eval_loss"])


def test_nodes_and_edges_are_measured_written_and_drawn(images, run, retrained, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    output, row = run
    argv = [str(output / "last.pth.tar"), "--output", str(tmp_path / "out"), "--keep", "0.8", "0.4", "--per", "node"]
    argv += ["--retrained", str(retrained[0]), "--record", "nano", "--data", "noise", "--in-memory", "--workers", "0"]
    argv += ["--data-dir", str(images)]
    assert run_command("damage", argv) == 0
    nodes = list(csv.DictReader((tmp_path / "out" / "nodes.csv").open()))
    assert len(nodes) == 1 + 4 + 5 + 6 + 4
    assert float(nodes[0]["top1"]) == pytest.approx(row["ema_eval_top1"])
    edges = list(csv.DictReader((tmp_path / "out" / "edges.csv").open()))
    assert [line["keep"] for line in edges] == ["", "0.8", "0.4"]

    (record,) = runs.load_all(tmp_path / "records" / "damage")
    assert (record["architecture"], record["data"], record["kind"]) == ("toponet_nano", "noise", "damage")
    assert record["command"].startswith(f"topodet damage {output}/last.pth.tar --output")
    assert record["versions"]["torch"]
    assert [line["top1"] for line in record["nodes"]["rows"]] == [float(line["top1"]) for line in nodes[1:]]
    # The network of the file, pruned, is what the rows speak of.
    state = torch.load(output / "last.pth.tar", weights_only=True)["state_dict_ema"]
    whole = TopoNet(**weights.infer_architecture(state), num_classes=3)
    whole.load_state_dict(state)
    small = connectivity.prune(whole, keep=0.8, per="node")
    with open_checkpoint(output / "last.pth.tar", ["--workers", "0", "--data-dir", str(images)]) as (_, loader):
        assert accuracy(loader)(small.eval())["loss"] == pytest.approx(record["edges"]["rows"][0]["loss"], rel=1e-4)
    (trained_on,) = record["retrained"]
    assert trained_on["top1"] == retrained[1]["eval_top1"]
    assert trained_on["removed"] == 1 - trained_on["edges"] / 37
    assert (trained_on["start"], trained_on["frozen"], trained_on["epochs"]) == ("its weights", True, 1)
    words = trained_on["command"].split()
    assert words[:2] == ["topodet", "pretrain"]
    assert parse(words[2:]) == replace(parse(["-c", f"{retrained[0]}/args.yaml"]), config=None)

    out = capsys.readouterr().out
    assert report.tables(record) in out
    for name in report.figures(record):
        assert (tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG")

    page = tmp_path / "docs" / "topology_damage.md"
    page.parent.mkdir()
    page.write_text("# Top\n<!-- records: begin -->\n<!-- records: end -->\nbottom\n")
    assert update_model_zoo.main(["docs/topology_damage.md"], root=tmp_path) == 0
    assert report.tables(record) in page.read_text()
    assert page.read_text().startswith("# Top\n")
    assert page.read_text().endswith("\nbottom\n")
    assert (page.parent / "damage_nano_edges.png").exists()
    page.write_text("# Top\n")
    capsys.readouterr()
    assert update_model_zoo.main(["docs/topology_damage.md"], root=tmp_path) == 1
    assert "topology_damage.md: the lines" in capsys.readouterr().err


def test_images_of_another_folder(run, tmp_path):
    write_images(tmp_path / "other", {"val": 2}, seed=1)
    argv = [str(run[0] / "last.pth.tar"), "--output", str(tmp_path), "--no-nodes", "--keep", "0.5"]
    assert run_command("damage", [*argv, "--data-dir", str(tmp_path / "other"), "--workers", "0"]) == 0
    assert not (tmp_path / "nodes.csv").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--workres", "0"], "unknown option '--workres'. Did you mean '--workers'"),
        (["--data-dir", "gone"], "--data-dir 'gone' does not exist"),
        (["--val-split", ""], "there is no validation split to evaluate on: give --val-split NAME"),
        (["--threshold", "2", "--per", "node"], "threshold=2.0 is out of range"),
    ],
)
def test_what_cannot_be_measured_is_told(images, run, tmp_path, capsys, change, message):
    words = [str(run[0] / "last.pth.tar"), "--output", str(tmp_path), "--data-dir", str(images), *change]
    assert run_command("damage", words) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_one_process_sees_all_images(run, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="WORLD_SIZE is 2: start this as one process"):  # noqa: SIM117
        with open_checkpoint(run[0] / "last.pth.tar"):
            pass


def test_a_file_without_classifier_is_told(run, tmp_path, capsys):
    files = weights.publish(run[0] / "last.pth.tar", tmp_path)
    assert run_command("damage", [str(files.pth)]) == 1
    assert "a published backbone has no classifier" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run_command("damage", ["x.pth.tar", "--record", "name"])
    assert "--record needs --data" in capsys.readouterr().err
    assert json.loads(files.card.read_text())["weights"] == "ema"
