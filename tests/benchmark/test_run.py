import os
import platform
import resource
import subprocess
import sys

import pytest
import torch

from topodet.benchmark import measure
from topodet.benchmark.measure import interleaved, summary
from topodet.benchmark.report import bandwidth_table
from topodet.benchmark.run import bandwidth_results, benchmark, keep_results, ratios
from topodet.benchmark.settings import make_settings
from topodet.errors import ConfigError

TINY = {"nodes": 4, "in_chs": 2, "out_chs": 4, "size": 4, "batch": 2, "rounds": 2, "warmup": 0, "memory": False}


def times(train, evaluation, **more):
    return {"train": {"median_ms": train}, "eval": {"median_ms": evaluation}, **more}


class Recorder:
    """Stands for a contestant; notes who was asked for a step."""

    def __init__(self, name, log, modes=("train", "eval")):
        self.name, self.log, self.modes, self.module = name, log, modes, torch.nn.Identity()

    def step(self, mode):
        self.log.append((self.name, mode, self.module.training))


def test_rounds_are_interleaved():
    log = []
    playing = {name: Recorder(name, log) for name in "abc"} | {"d": Recorder("d", log, modes=("eval",))}
    found = interleaved(playing, "train", rounds=2, warmup=1, cuda=False)
    assert {name: len(durations) for name, durations in found.items()} == {"a": 2, "b": 2, "c": 2}
    assert [name for name, *_ in log] == [*"abc", *"cba", *"abc"]
    assert {(mode, training) for _, mode, training in log} == {("train", True)}
    log.clear()
    assert "d" in interleaved(playing, "eval", rounds=1, warmup=0, cuda=False)
    assert {(mode, training) for _, mode, training in log} == {("eval", False)}


def test_memory_is_the_median_of_processes(monkeypatch):
    peaks = iter((5.0, 1.0, 3.0))
    monkeypatch.setattr(
        measure, "_of_a_process", lambda settings, name: {"baseline_mb": 1.0, "eval_peak_mb": next(peaks)}
    )
    assert measure.process_memory(make_settings(**TINY), "model") == {"baseline_mb": 1.0, "eval_peak_mb": 3.0}


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc, whose malloc this is about")
def test_freed_memory_is_kept():
    """What is freed and taken again costs no page faults, whatever malloc was told before."""
    script = """
import resource
import torch
from topodet.benchmark.measure import keep_freed_memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        tensors = [torch.zeros(2**20) for _ in range(16)]  # 64 MB
        while tensors:
            tensors.pop()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
assert keep_freed_memory()
faults()
print(faults())
"""
    gives_back = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=gives_back)
    pages = 64 * 2**20 // resource.getpagesize()
    given_back, kept = map(int, done.stdout.split())
    assert kept < pages <= given_back


@pytest.mark.parametrize("possible", [True, False])
@pytest.mark.parametrize(("malloc", "called"), [("steady", 1), ("default", 0)])
def test_malloc_is_left_alone_where_it_is_asked_for(malloc, called, possible, monkeypatch):
    calls = []
    monkeypatch.setattr("topodet.benchmark.run.keep_freed_memory", lambda: calls.append(1) or possible)
    found = benchmark(make_settings(**TINY, malloc=malloc, contestants=("model",)))
    assert len(calls) == called
    assert found["settings"]["malloc"] == ("steady" if called and possible else "default")


def test_quartiles():
    found = summary([4.0, 1.0, 2.0, 3.0, 5.0])
    assert found == {"median_ms": 3.0, "q1_ms": 2.0, "q3_ms": 4.0, "iqr_ms": 2.0, "rounds": 5}
    assert summary([2.0])["q3_ms"] == 2.0


def test_ratios_by_hand():
    memory = {"baseline_mb": 100.0, "eval_peak_mb": 150.0, "train_peak_mb": 300.0}
    floor = {"baseline_mb": 100.0, "eval_peak_mb": 120.0, "train_peak_mb": 200.0}
    found = ratios({"model": times(6.0, 3.0, memory=memory), "chain": times(2.0, 2.0, memory=floor)})
    assert found == {
        "train_ratio_to_chain": 3.0,
        "eval_ratio_to_chain": 1.5,
        "memory_ratio_to_chain": 1.5,
        "memory_above_baseline_ratio_to_chain": 2.0,
        "eval_memory_ratio_to_chain": 1.25,
        "eval_memory_above_baseline_ratio_to_chain": 2.5,
    }
    other = times(3.0, 1.5, memory={**floor, "train_peak_mb": 160.0})
    better = ratios(
        {"model": times(6.0, 3.0, memory=memory), "chain": times(2.0, 2.0, memory=floor), "chain_channels_last": other}
    )
    assert (better["train_ratio_to_chain"], better["eval_ratio_to_chain"]) == (3.0, 2.0)
    assert better["memory_ratio_to_chain"] == 300 / 160
    assert not [name for name in better if name.endswith("channels_last")]
    rows = {f"detectron2_{name}": {"train": {"median_ms": value}} for name, value in (("toponet50", 3), ("r50", 2))}
    assert ratios(rows) == {"detectron2_train_ratio_to_r50": 1.5}


def test_what_fewer_edges_promise():
    """A step of 10 over a chain of 2: with a quarter of the edges 2 + 8 / 4 = 4."""
    rows = {"model": times(10.0, 10.0, edges=8), "chain": times(2.0, 2.0), "pruned": times(5.0, 4.0, edges=2)}
    found = keep_results(rows)
    same_nodes = {**rows, "chain": times(4.0, 4.0), "chain_channels_last": times(2.0, 2.0)}
    assert keep_results(same_nodes) == found
    assert (found["share"], found["edges"], found["full_edges"]) == (0.25, 2, 8)
    assert found["train"] == {"promised_ratio": 0.4, "measured_ratio": 0.5}
    assert found["eval"] == {"promised_ratio": 0.4, "measured_ratio": 0.4}


def test_bytes_that_must_move(monkeypatch):
    """4 nodes, 6 edges; maps of 2 x 4 x 2 x 2 in bfloat16 are 64 bytes: (6 + 3) forward, (6 + 2 x 3) backward."""
    monkeypatch.setattr("topodet.benchmark.run.copy_bandwidth", lambda device: 1e6)
    rows = {"model": times(11.0, 2.0), "chain": times(1.0, 3.0)}
    found = bandwidth_results(rows, make_settings(**TINY, dtype="bfloat16"))
    assert found["train"]["gb_moved"] * 1e9 == pytest.approx(64 * (9 + 12))
    assert found["train"]["share_of_peak"] == pytest.approx(64 * 21 / 10e-3 / 1e6)
    assert found["eval"]["share_of_peak"] is None  # faster than the chain, within the noise
    assert found["kernel"] == "fused"
    assert "aggregation (fused)" in bandwidth_table({"bandwidth": found})


def test_growth_by_nodes():
    found = benchmark(make_settings(**TINY, growth=(2, 5), keep=0.9))
    assert [(row["nodes"], row["edges"]) for row in found["growth"]] == [(2, 1), (5, 10)]
    for row in found["growth"]:
        rows = row["contestants"]
        assert {"model", "plain", "chain"} <= rows.keys()
        assert "pruned" not in rows
        for mode in ("train", "eval"):
            chains = [rows[name] for name in ("chain", "chain_channels_last")]
            for name in ("model", "plain"):
                extra = rows[name][f"{mode}_ms"] - min(chain[f"{mode}_ms"] for chain in chains)
                assert rows[name][f"{mode}_us_per_edge"] == pytest.approx(1e3 * extra / row["edges"])
            assert not any(f"{mode}_us_per_edge" in chain for chain in chains)
    assert found["keep"]["edges"] == 5
    model, *chains = (found["contestants"][k]["train"]["median_ms"] for k in ("model", "chain", "chain_channels_last"))
    assert found["train_ratio_to_chain"] == model / min(chains)


def test_what_has_nothing_to_be_compared_with():
    for options in ({"growth": (2,)}, {"keep": 0.9}):
        with pytest.raises(
            ConfigError, match="compare model with chain or chain_channels_last; --contestants has model"
        ):
            benchmark(make_settings(**TINY, contestants=("model",), **options))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_counts_its_own_memory():
    options = {**TINY, "device": "cuda", "dtype": "bfloat16", "memory_format": "channels_last", "memory": True}
    found = benchmark(make_settings(**options))
    memory = found["contestants"]["model"]["memory"]
    assert 0 < memory["eval_peak_mb"] < memory["train_peak_mb"]
    assert found["bandwidth"]["peak_gb_per_s"] > 0
    assert found["bandwidth"]["kernel"] == "triton"
