import json
import re

import pytest

from tests.commands.helpers import run_command
from tools import update_model_zoo
from topodet.benchmark import report
from topodet.benchmark.measure import process_memory
from topodet.benchmark.settings import make_settings
from topodet.errors import DataError
from topodet.records import markdown, runs, zoo

TINY = [
    "--nodes",
    "4",
    "--in-chs",
    "2",
    "--out-chs",
    "4",
    "--size",
    "4",
    "--batch",
    "2",
    "--rounds",
    "2",
    "--warmup",
    "0",
]
PAGE = "docs/performance.md"
PAPER = json.loads((update_model_zoo.ROOT / "records" / "paper.json").read_text())
PAPER["backbones"] = {"resnet50": PAPER["backbones"]["resnet50"]}
pytestmark = pytest.mark.usefixtures("small_zoo")


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    """What a preset writes, at a tiny size."""
    path = tmp_path_factory.mktemp("benchmark") / "stage26.json"
    words = ["--preset", "stage26", *TINY, "--keep", "0.7", "--growth", "3", "4", "--no-memory", "--json", str(path)]
    assert run_command("benchmark", words) == 0
    return json.loads(path.read_text())


def test_the_record_says_what_was_measured_and_on_what(record):
    assert (record["kind"], record["name"]) == ("benchmark", "stage26")
    assert record["command"].startswith("topodet benchmark --preset stage26 --nodes 4")
    assert {"torch", "topodet", "python"} <= record["versions"].keys()
    assert "threads" in record["machine"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", record["date"])
    assert (record["settings"]["nodes"], record["settings"]["growth"]) == (4, [3, 4])
    for mode in ("train", "eval"):
        rows = {name: row[mode] for name, row in record["contestants"].items() if mode in row}
        assert all(row["rounds"] == 2 and row["q1_ms"] <= row["median_ms"] <= row["q3_ms"] for row in rows.values())
        rows["chain"] = min(rows["chain"], rows["chain_channels_last"], key=lambda row: row["median_ms"])
        for other in ("chain", "plain", "pruned"):
            ratio = record[f"{mode}_ratio_to_{other}"]
            assert ratio == rows["model"]["median_ms"] / rows[other]["median_ms"]


@pytest.mark.slow
def test_memory_is_of_processes_of_their_own(tmp_path, capsys):
    path = tmp_path / "a.json"
    assert (
        run_command("benchmark", [*TINY, "--contestants", "model", "chain", "--memory-runs", "1", "--json", str(path)])
        == 0
    )
    found = json.loads(path.read_text())
    model, chain = (found["contestants"][name]["memory"] for name in ("model", "chain"))
    assert found["memory_ratio_to_chain"] == model["train_peak_mb"] / chain["train_peak_mb"]
    assert f"{model['train_peak_mb']:,.0f}" in capsys.readouterr().out
    # A larger input takes more, by tens of MB, which no noise of an allocator hides.
    larger = process_memory(make_settings(nodes=4, in_chs=2, out_chs=64, size=32, batch=64, memory_runs=1), "model")
    assert larger["train_peak_mb"] - larger["baseline_mb"] > model["train_peak_mb"] - model["baseline_mb"] + 30
    for memory in (model, larger):
        assert memory.keys() == {"baseline_mb", "eval_peak_mb", "train_peak_mb"}
        assert 50 < memory["baseline_mb"] < memory["eval_peak_mb"] <= memory["train_peak_mb"]


def test_tables_have_every_number(record):
    text = report.tables(record)
    for name in ("model", "plain", "chain", "pruned"):
        assert f"\n| {name} " in text
    times = {"median_ms": 1234.5, "q1_ms": 99.94, "q3_ms": 12345.6}
    slow = {"contestants": {"model": {"parameters": 1, "edges": 1, "train": times}}}
    assert "| 1,234 [99.9, 12,346] | -" in report.tables(slow)
    assert f"| {record['train_ratio_to_chain']:.2f} " in text
    assert "| 4 of 6 edges (67%) | training step |" in text
    assert re.search(r"^\| 3 +\| 3 +\| ", text, flags=re.MULTILINE)  # nodes, edges
    widths = {len(line) for line in report.contestants_table(record).splitlines()}
    assert len(widths) == 1  # readable as it is


def test_docs_are_made_from_records(record, tmp_path, capsys):
    page = tmp_path / "docs" / "performance.md"
    page.parent.mkdir()
    page.write_text(f"# Top\n\n{markdown.START}\n\n{report.NOT_YET}\n\n{markdown.END}\n\nbottom\n")
    assert update_model_zoo.main([PAGE, "--check"], root=tmp_path) == 0
    runs.save_as(record, tmp_path / "records" / "benchmarks")
    assert update_model_zoo.main([PAGE, "--check"], root=tmp_path) == 1
    assert "stale" in capsys.readouterr().out
    assert update_model_zoo.main([PAGE], root=tmp_path) == 0
    assert update_model_zoo.main([PAGE, "--check"], root=tmp_path) == 0
    text = page.read_text()
    assert text.startswith("# Top\n")
    assert text.endswith(f"{markdown.END}\n\nbottom\n")
    assert report.NOT_YET not in text
    assert report.tables(record) in text
    assert record["command"] in text
    picture = page.parent / "benchmark_stage26_growth.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    picture.unlink()
    assert update_model_zoo.main([PAGE, "--check"], root=tmp_path) == 1
    with pytest.raises(DataError, match="must surround the measured tables"):
        report.update_page("# Top\n", [record])


def test_the_zoo_lists_the_records(record):
    assert "## Speed\n" in zoo.model_zoo(PAPER, [], [])
    assert "Not yet measured." in zoo.model_zoo(PAPER, [], [])
    detectors = record | {"name": "detectors", "mmdetection_train_ratio_to_r50": 1.234}
    text = zoo.model_zoo(PAPER, [], [], [record, detectors])
    assert "Not yet measured." not in text
    ratios = f"model / chain: train {record['train_ratio_to_chain']:.2f}, eval {record['eval_ratio_to_chain']:.2f}"
    assert "| [stage26](records/benchmarks/stage26.json) | stage of 4 nodes (complete), 2 to 4 channels" in text
    assert f"| {ratios} |" in text
    assert "mmdetection toponet50 / r50: train 1.23" in text
    assert f"`{record['command']}`" in text


def test_wrong_options_are_one_line(capsys):
    assert run_command("benchmark", ["--preset", "stage62"]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("error: unknown --preset 'stage62'. Did you mean 'stage26'")
    assert captured.out == ""


@pytest.mark.parametrize(("framework", "module"), [("mmdetection", "mmdet"), ("detectron2", "detectron2")])
def test_a_training_iteration_of_a_detector(framework, module, tmp_path):
    pytest.importorskip(module, reason=f"{module} is not installed")
    path = tmp_path / "a.json"
    words = ["--what", "detector", "--frameworks", framework, "--batch", "1", "--size", "64", "--no-memory"]
    assert run_command("benchmark", [*words, "--rounds", "1", "--warmup", "0", "--json", str(path)]) == 0
    found = json.loads(path.read_text())
    assert set(found["contestants"]) == {f"{framework}_toponet50", f"{framework}_r50"}
    assert found["contestants"][f"{framework}_toponet50"]["edges"] == 697
    assert found[f"{framework}_train_ratio_to_r50"] > 0
    assert module in " ".join(found["versions"])
    assert "training / r50" in report.tables(found)
