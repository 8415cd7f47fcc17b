import base64
import contextlib
import hashlib
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.analysis.report_runs import scattered, toponet, write_run
from tests.commands.helpers import run_command
from tests.detection import published
from topodet import complexity, connectivity, weights
from topodet.analysis import report
from topodet.errors import ConfigError, WeightsError
from topodet.models import TopoNet
from topodet.related.nnstd import nnstd
from topodet.related.nnstd.distance import nnstd_of_layers

HOSTILE = "</script><script>alert('1')</script><img src=x onerror=\"alert(2)\">"


class Page(HTMLParser):
    """What a browser would make of the page: its tags, and the text of its scripts and of all else."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.scripts, self.texts, self.attributes = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [name for name, _ in attributes]
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data):
        if self.cdata_elem == "script":
            self.scripts[-1] += data
        else:
            self.texts.append(data)


def saved(model, path):
    torch.save(model.state_dict(), path)
    return str(path)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "nano"
    return folder, write_run(folder)


@pytest.mark.parametrize("edge_weights", ["learned", "fixed"])
def test_cuts_are_what_prune_gives_and_counting_finds(edge_weights):
    model, size = toponet(edge_weights=edge_weights), (3, 32, 32)
    found = report.measure(report.Subject("it", "network", "toponet", model, size))
    assert found["network"]["multiply_adds"] == complexity.multiply_adds(model, size)
    disconnected = 0
    for per, rows in found["cuts"].items():
        assert [row["threshold"] for row in rows] == sorted({row["threshold"] for row in rows})
        assert rows[0]["edges"] == 31
        for row in rows[::9]:
            with expected(row["disconnected"]):
                small = connectivity.prune(model, threshold=row["threshold"], per=per, on_disconnected="repair")
            assert complexity.parameters(small) == (row["parameters"], row["edge_weights"])
            assert complexity.multiply_adds(small, size) == row["multiply_adds"]
            assert [stage.topology.num_nodes for stage in small.stages] == [stage["nodes"] for stage in row["stages"]]
            for stage, left in zip(small.stages, row["stages"]):
                assert stage.topology.num_edges == left["edges"] == sum(digit != "0" for digit in left["kept"])
            disconnected += len(row["disconnected"])
    assert disconnected
    assert not any(row["disconnected"] for row in found["cuts"]["node"])


def expected(disconnected):
    return pytest.warns(UserWarning, match="no longer reaches") if disconnected else contextlib.nullcontext()


def test_kept_edges_are_named_one_by_one(tmp_path):
    model = TopoNet(nodes=(4, 2), width=4, num_classes=0)
    alpha = model.stages[0].wiring.alpha.data
    assert model.stages[0].topology.edges == ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
    alpha.copy_(torch.tensor([0.9, 0.1, -0.8, 0.2, 0.05, 0.7]))
    subject = report.open_subject(saved(model, tmp_path / "m.pth"))
    found = report.measure(subject, thresholds=[0.5, 0.75])
    rows = {row["threshold"]: row for row in found["cuts"]["network"]}
    assert list(rows) == [0.0, 0.5, 0.75]
    assert rows[0.5]["stages"][0]["kept"] == "101001"  # 0 -> 1 -> 2 -> 3
    assert rows[0.5]["disconnected"] == []
    assert rows[0.75]["stages"][0]["kept"] == "101002"  # 2 -> 3 is too weak and the only way
    assert rows[0.75]["disconnected"] == ["stages.0"]
    stage = found["stages"][0]
    assert (stage["negative"], stage["in_degree"], stage["out_degree"]) == (1, [0, 1, 2, 3], [3, 2, 1, 0])
    assert sum(stage["histogram"]["counts"]) == 6
    groups = {(g["from"], g["to"]): g for g in stage["histograms_by_in_degree"]}
    assert {degrees: group["edges"] for degrees, group in groups.items()} == {(1, 1): 1, (2, 3): 5}
    assert groups[2, 3]["mean_abs"] == pytest.approx(np.mean([0.1, 0.8, 0.2, 0.05, 0.7]))
    assert found["nn_mass"]["cells"][0] == {"name": "stages.0", "channels": 32, "density": 1.0, "mass": 32.0}


def test_a_run_tells_its_epochs(run):
    folder, model = run
    found = report.measure(report.open_subject(str(folder)), thresholds=[0.1])
    assert (found["kind"], found["architecture"], found["facts"]["epoch"]) == ("run", "toponet_nano", 3)
    assert found["network"]["input_size"] == [3, 32, 32]
    assert found["notes"] == []
    evolution = found["evolution"]
    assert evolution["epochs"] == [0, 2, 3]
    assert [row["eval_top1"] for row in evolution["history"]] == [0, 10, 20, 30]
    for place, epoch in enumerate(evolution["epochs"]):
        wanted = connectivity.wirings(scattered(model, seed=epoch))
        for alpha, wiring in zip(evolution["alpha"][place], wanted.values()):
            assert alpha == pytest.approx(wiring.alpha.tolist())
    assert [stage["alpha"] for stage in found["stages"]] == evolution["alpha"][-1]
    assert report.page(found).count("Over the epochs") == 1


def test_half_written_runs_are_read_as_far_as_they_go(run, tmp_path):
    whole = (run[0] / "checkpoint-2.pth.tar").read_bytes()
    (tmp_path / "args.yaml").write_text("model: toponet_nano\n")
    with pytest.raises(WeightsError, match="has not finished its first epoch"):
        report.open_subject(str(tmp_path))
    (tmp_path / "checkpoint-3.pth.tar").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WeightsError, match=r"none of its checkpoints can be read.*truncated"):
        report.open_subject(str(tmp_path))
    (tmp_path / "checkpoint-2.pth.tar").write_bytes(whole)
    subject = report.open_subject(str(tmp_path))
    assert [snapshot.epoch for snapshot in subject.snapshots] == [2]
    assert len(subject.history) == 3  # of the checkpoint
    told = "\n".join(subject.notes)
    for words in ("checkpoint-3.pth.tar", "there is no last.pth.tar", "there is no summary.csv"):
        assert words in told
    (tmp_path / "summary.csv").write_text("epoch,eval_top1\n0,5.5\n1\n")
    subject = report.open_subject(str(tmp_path))
    assert [dict(row) for row in subject.history] == [{"epoch": 0.0, "eval_top1": 5.5}]
    assert "summary.csv, line 3" in "\n".join(subject.notes)
    report.page(report.measure(subject, thresholds=[0.1]))


def test_connected_networks(tmp_path):
    model = write_run(tmp_path / "run", "--model", "resnet20_cifar", "--rewire", "learned", epochs=(0,))
    found = report.measure(report.open_subject(str(tmp_path / "run")), thresholds=[0.5])
    assert "<dt>epoch</dt><dd>0</dd>" in report.page(found)
    assert [stage["name"] for stage in found["stages"]] == ["layer1.0", "layer2.0", "layer3.0"]
    assert [len(stage["edges"]) for stage in found["stages"]] == [28, 28, 28]
    assert found["nn_mass"]["mass"] == 784
    with expected(found["cuts"]["network"][1]["disconnected"]):
        cuts = connectivity.plan_pruning(model, threshold=0.5, on_disconnected="repair")
    row = found["cuts"]["network"][1]
    assert row["edges"] == sum(len(part.edges) for part in cuts.values()) < 84
    with expected(row["disconnected"]):
        pruned = connectivity.prune(model, threshold=0.5, on_disconnected="repair")
    assert (row["parameters"], row["edge_weights"]) == complexity.parameters(pruned)
    assert row["multiply_adds"] == complexity.multiply_adds(pruned, (3, 32, 32))
    assert row["multiply_adds"] < found["network"]["multiply_adds"]
    # Without the options of the training nothing tells which network it is.
    lone = report.measure(report.open_subject(saved(model, tmp_path / "lone.pth")), thresholds=[0.5])
    assert lone["cuts"]["network"][1]["edges"] == row["edges"]
    assert (lone["network"], lone["nn_mass"], row["parameters"] is None) == (None, None, False)
    assert "does not say which network" in lone["notes"][0]
    report.page(lone)
    # Nodes that are left of a run keep their numbers in the file.
    lone = report.measure(report.open_subject(saved(pruned, tmp_path / "pruned.pth")), thresholds=[0.0])
    graphs = [wiring.topology for wiring in connectivity.wirings(pruned).values()]
    assert [stage["edges"] for stage in lone["stages"]] == [list(map(list, graph.edges)) for graph in graphs]


def test_published_backbones_and_detectors(run, tmp_path):
    files = weights.publish(run[0] / "last.pth.tar", tmp_path, licence="CC0-1.0")
    found = report.measure(report.open_subject(str(files.pth)), thresholds=[0.1])
    assert (found["kind"], found["architecture"]) == ("published backbone", "toponet_nano")
    assert found["facts"]["licence"] == "CC0-1.0"
    assert found["network"]["parameters"] + 37 == weights.read(files.pth).card["parameters"]
    inside = {f"backbone.bottom_up.{name}": value for name, value in weights.read(files.pth).state_dict.items()}
    torch.save({"model": {**inside, "roi_heads.weight": torch.ones(2)}}, tmp_path / "detector.pth")
    other = report.measure(report.open_subject(str(tmp_path / "detector.pth")), thresholds=[0.1])
    assert other["kind"] == "backbone of a detector"
    assert other["stages"] == found["stages"]
    pruned = published(tmp_path, "mobilenetv2_050", wiring="learned", prune={"keep": 0.5, "per": "node"})
    found = report.measure(report.open_subject(str(pruned.pth)), thresholds=[0.1])
    assert (found["kind"], found["architecture"]) == ("published backbone", "mobilenetv2_050")
    edges = found["network"]["edge_weights"]
    assert found["network"]["parameters"] + edges == weights.read(pruned.pth).card["parameters"]


def test_distances(tmp_path):
    one, other = (report.open_subject(saved(toponet(seed), tmp_path / f"{seed}.pth")) for seed in (0, 1))
    itself = report.measure(one, thresholds=[0.1], against=one)["nnstd"]
    assert all(row["mean"] == 0 for row in itself["wirings"])
    assert itself["channels"] is None  # dense
    found = report.measure(one, thresholds=[0.1], against=other)["nnstd"]
    for row in found["wirings"]:
        cuts = [
            connectivity.plan_pruning(subject.model, keep=row["keep"], per="node", on_disconnected="allow")
            for subject in (one, other)
        ]
        for value, *pair in zip(row["stages"], *(parts.values() for parts in cuts)):
            matrices = []
            for part in pair:
                matrix = np.zeros((part.topology.num_nodes,) * 2)
                for edge in part.edges:
                    matrix[edge] = 1
                matrices.append([matrix])
            assert value == (nnstd_of_layers(*matrices).mean if all(m[0].any() for m in matrices) else None)
    assert found["wirings"][0]["mean"] == 0  # complete graphs
    assert found["wirings"][5]["mean"] > 0
    for subject in (one, other):
        with torch.no_grad():
            subject.model.stages[1].nodes[2].conv_pw.weight.bernoulli_(0.5)
    channels = report.measure(one, thresholds=[0.1], against=other)["nnstd"]["channels"]
    assert channels["mean"] == nnstd(one.model, other.model, "authors").mean > 0
    assert channels["layers"]["stages.1.nodes.2.conv_pw"] > 0
    larger = report.open_subject(saved(toponet(nodes=(4, 7, 5)), tmp_path / "larger.pth"))
    with pytest.raises(ConfigError, match=r"wirings of \[4, 6, 5\] nodes and .*larger.pth of \[4, 7, 5\]"):
        report.measure(one, thresholds=[0.1], against=larger)


def test_names_in_files_stay_text(tmp_path):
    wiring = toponet().stages[0].wiring.state_dict()
    state = {f"{HOSTILE}\x1b[31m.wiring.{name}": value for name, value in wiring.items()}
    torch.save({"state_dict": state, "card": {"licence": HOSTILE, "notes": HOSTILE}}, tmp_path / "bad.pth")
    found = report.measure(report.open_subject(str(tmp_path / "bad.pth")), thresholds=[0.1])
    html = report.page(found)
    page = Page(html)
    assert page.tags.count("script") == 2
    assert "img" not in page.tags
    assert not [name for name in page.attributes if name.startswith("on")]
    assert sum(HOSTILE in text for text in page.texts) >= 3
    data = json.loads(page.scripts[0])
    assert data["cuts"]["network"] == found["cuts"]["network"]
    digest = base64.b64encode(hashlib.sha256(page.scripts[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in html
    assert not re.search(r"(?:src|href)=\"(?!data:,)", html)
    assert "\x1b" not in report.text(found)


def test_command(tmp_path, capsys):
    source = saved(toponet(), tmp_path / "model.pth")
    argv = [source, "--html", str(tmp_path / "out.html"), "--threshold", "0.3", "--against", source]
    assert run_command("analyze", [*argv, "--json", str(tmp_path / "out.json")]) == 0
    out = capsys.readouterr().out
    numbers = json.loads((tmp_path / "out.json").read_text())
    assert report.text(numbers) in out
    assert out.splitlines()[-2:] == [str(tmp_path / "out.json"), str(tmp_path / "out.html")]
    assert (tmp_path / "out.html").read_text() == report.page(numbers)
    assert run_command("analyze", [*argv, "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out) == numbers


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["toponet_nanno"], "'toponet_nanno' is not a file or folder here.*Did you mean 'toponet_nano'"),
        (["resnet18"], "resnet18 has no wiring"),
        (["gone.pth"], "no weights file at gone.pth"),
        (["empty"], "empty is not a run of `topodet pretrain`: .* Give a file"),
        (
            ["detector"],
            "detector is not a run of `topodet pretrain`: .* Give one of its files, e.g. detector.epoch_12.pth",
        ),
        (["begun"], "begun has no checkpoint: the run has not finished its first epoch"),
        (["plain.pth"], "plain.pth has no topology: none of its 1 tensors"),
        (["loop.pth"], "a.wiring is not a wiring: .*self-loop"),
        (["elsewhere.pth"], "is refused: its network hf-hub:x refers to other files"),
        (["model.pth", "--threshold", "0.1", "-1"], "threshold=-1.0 is out of range"),
        (["model.pth", "--threshold", "nan"], "threshold=nan is out of range"),
    ],
)
def test_what_cannot_be_looked_at_is_told(argv, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    saved(toponet(), "model.pth")
    for n, path in enumerate(("empty/x.txt", "begun/args.yaml", "detector/epoch_9.pth", "detector/epoch_12.pth")):
        Path(path).parent.mkdir(exist_ok=True)
        Path(path).touch()
        os.utime(path, (n, n))
    torch.save({"fc.weight": torch.ones(2, 2)}, "plain.pth")
    edges = {"edges": torch.tensor([[0, 1], [1, 1]]), "alpha": torch.ones(2)}
    loop = {f"a.wiring.{name}": value for name, value in edges.items()}
    torch.save(loop, "loop.pth")
    torch.save({"state_dict": loop, "args": {"model": "hf-hub:x"}, "num_classes": 2}, "elsewhere.pth")
    assert run_command("analyze", argv) == 1
    captured = capsys.readouterr()
    assert re.search(message, captured.err)
    assert captured.err.count("\n") == 1
    assert not (tmp_path / "topology_report.html").exists()
