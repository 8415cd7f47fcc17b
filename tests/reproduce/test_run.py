"""A tiny study through whole, with real trainings."""

import json
import re
import shlex
import shutil
import signal

import pytest

from topodet.reproduce import command, runner

from .helpers import TINY, checkout, execute_here


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(checkout(tmp_path, {"tiny": TINY}))
    return tmp_path


def records(folder):
    return {path.stem: json.loads(path.read_text()) for path in sorted((folder / "records/studies").rglob("*.json"))}


def test_a_study_through_whole(here, capsys):
    ran = []

    def execute(line, seconds):
        ran.append(re.search(r"--experiment (\w+)", line)[1])
        return execute_here(line, seconds)

    assert command("tiny", execute=execute) == 0
    assert ran == [f"{arm}_seed{seed}" for seed in (0, 1) for arm in ("fixed", "learned", "again")]

    found = records(here)
    assert found.keys() == set(ran)
    learned, again = found["learned_seed1"], found["again_seed1"]
    assert (learned["study"], learned["scale"], learned["arm"], learned["seed"]) == ("tiny", "small", "learned", 1)
    assert learned["hours"] >= 0
    assert len(learned["history"]) == learned["of_epochs"] == 1
    assert learned["command"].startswith("python -m topodet pretrain -c configs/pretrain/toponet_nano_wiring.yaml")
    assert learned["versions"]["torch"]
    edges = {name: [[source, target] for source, target, _ in rows] for name, rows in learned["alpha"].items()}
    assert list(edges.values()) == [[[0, 1]], [[0, 1], [0, 2], [1, 2]]]
    assert edges == {name: [[source, target] for source, target, _ in rows] for name, rows in again["alpha"].items()}
    assert {alpha for rows in found["fixed_seed0"]["alpha"].values() for *_, alpha in rows} == {1.0}

    page = (here / "docs/studies/tiny.md").read_text()
    scores = {name: record["metrics"]["eval_top1"] for name, record in found.items()}
    mean = (scores["learned_seed0"] + scores["learned_seed1"]) / 2
    assert re.search(rf"\| `learned` +\| top-1, % +\| {mean:.2f} ± .* \| 2 \| 69.91 +\|", page)
    gap = mean - (scores["fixed_seed0"] + scores["fixed_seed1"]) / 2
    assert f"| learned is above fixed | {gap:+.2f}, " in page
    for name in ("tiny-small.png", "tiny-small-edges.png"):
        assert f"]({name})" in page
        assert (here / "docs/studies" / name).stat().st_size > 1000

    assert "edge weights in their records" not in page
    path = here / "records/studies/tiny-small/learned_seed1.json"
    path.write_text(json.dumps({key: value for key, value in learned.items() if key != "alpha"}))
    assert command("tiny", action="page") == 0
    page = (here / "docs/studies/tiny.md").read_text()
    assert "Without commit, edge weights in their records: learned 1." in page

    ran.clear()
    capsys.readouterr()
    assert command("tiny", action="status") == 0
    assert "6 done; about 0.0 hours left on a CPU" in capsys.readouterr().out
    assert command("tiny", execute=execute) == 0
    assert not ran  # nothing is missing


def test_what_was_run_by_hand_is_gone_on_with_and_recorded(here, capsys):
    command("tiny", action="dry_run", seeds=1)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "# tiny-small: fixed_seed0"
    assert printed[-1] == "# 3 of 3 runs are missing, about 2 hours one after the other"
    assert execute_here(printed[1], None) == 0
    before = (here / "runs/studies/tiny-small/fixed_seed0/summary.csv").read_text()
    command("tiny", seeds=1, execute=execute_here)
    assert records(here).keys() == {"fixed_seed0", "learned_seed0", "again_seed0"}
    assert (here / "runs/studies/tiny-small/fixed_seed0/summary.csv").read_text() == before


def test_a_checkpoint_that_is_gone_is_made_again(here):
    """A record may come from another machine; what starts from its run needs the run."""
    ran = []

    def execute(line, seconds):
        ran.append(re.search(r"--experiment (\w+)", line)[1])
        return execute_here(line, seconds)

    command("tiny", seeds=1, execute=execute)
    for name in ("fixed", "learned"):
        shutil.rmtree(here / f"runs/studies/tiny-small/{name}_seed0")
    (here / "records/studies/tiny-small/again_seed0.json").unlink()
    shutil.rmtree(here / "runs/studies/tiny-small/again_seed0")
    ran.clear()
    assert command("tiny", seeds=1, execute=execute) == 0
    assert ran == ["learned_seed0", "again_seed0"]


def test_a_run_that_fails_stops_only_what_needs_it(here, capsys):
    def execute(line, seconds):
        return 3 if "learned" in line else execute_here(line, seconds)

    assert command("tiny", seeds=1, execute=execute) == 1
    text = capsys.readouterr().out
    assert "learned_seed0: failed with exit status 3" in text
    assert "again_seed0: waits for learned_seed0" in text
    assert records(here).keys() == {"fixed_seed0"}
    command("tiny", seeds=1, action="status")
    assert "1 done, 2 missing" in capsys.readouterr().out


def test_a_budget_ends_a_run_and_the_next_one_goes_on(here, capsys):
    lines = []

    def out_of_time(line, seconds):
        lines.append((line, seconds))
        return runner.OUT_OF_TIME

    assert command("tiny", seeds=1, budget=1e-9, execute=out_of_time) == 1
    assert len(lines) <= 1
    assert "the budget is used up" in capsys.readouterr().out
    lines.clear()
    assert command("tiny", seeds=1, budget=1, execute=out_of_time) == 1
    assert 3000 < lines[0][1] <= 3600
    assert "interrupted, the budget is used up; the same command continues it" in capsys.readouterr().out
    assert all("--resume auto" in line for line, _ in lines)
    assert not records(here)


@pytest.mark.parametrize("handler", [signal.default_int_handler, signal.SIG_IGN])  # the second: in the background
def test_a_line_that_is_out_of_time_is_interrupted(handler, tmp_path):
    before = signal.signal(signal.SIGINT, handler)
    script = 'trap "touch stopped; exit 0" INT; touch begun; while true; do sleep 0.05; done'
    try:
        assert runner.run_line(script, 2, folder=tmp_path) == runner.OUT_OF_TIME
    finally:
        signal.signal(signal.SIGINT, before)
    assert (tmp_path / "stopped").exists()


def test_a_run_of_another_process_is_passed_over(here, capsys):
    """The lock is that of the file, so a second runner in this process stands for one in another."""

    def execute(line, seconds):
        command("tiny", seeds=1, action="status")
        assert command("tiny", seeds=1, execute=lambda line, seconds: 3) == 1
        return 3

    command("tiny", seeds=1, execute=execute)
    told = capsys.readouterr().out
    assert re.search(r"tiny-small fixed +seed 0: runs", told)
    assert "fixed_seed0: another process runs it" in told


def test_words_of_a_line_are_shell_words(here, capsys):
    command("tiny", action="dry_run", seeds=1, data=here / "my data")
    line = capsys.readouterr().out.splitlines()[1]
    assert f"--data-dir={here}/my data/digits" in shlex.split(line)
