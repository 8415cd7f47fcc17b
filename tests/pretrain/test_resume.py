"""A run that is killed, at whatever moment, and resumed ends where it would have ended."""

from __future__ import annotations

import csv
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import textwrap

import pytest
import torch

from topodet import weights
from topodet.errors import ConfigError, WeightsError
from topodet.pretrain import main
from topodet.pretrain.lock import hold

from .helpers import ROOT, assert_same_tensors, curve, load, options, start, train, write_images

MORE = ("--epochs", "3", "--sparsity", "adaptive", "--model-ema", "--model-ema-warmup", "--checkpoint-hist", "2")


def assert_same_run(left, right):
    a, b = load(left / "last.pth.tar"), load(right / "last.pth.tar")
    assert a["epoch"] == b["epoch"] == 2
    assert_same_tensors(a["state_dict"], b["state_dict"])
    assert_same_tensors(a["state_dict_ema"], b["state_dict_ema"])
    rows = [list(csv.DictReader((folder / "summary.csv").open())) for folder in (left, right)]
    for row in rows[0] + rows[1]:
        del row["seconds"], row["images_per_s"]
    assert rows[0] == rows[1]
    assert curve(left) == curve(right)
    names = [sorted(path.name for path in folder.iterdir() if path.name != "tensorboard") for folder in (left, right)]
    assert names[0] == names[1]
    best = [load(folder / "model_best.pth.tar") for folder in (left, right)]
    assert best[0]["epoch"] == best[1]["epoch"]
    assert_same_tensors(best[0]["state_dict"], best[1]["state_dict"])


@pytest.mark.slow
def test_killed_from_outside(images, tmp_path):
    more = (*MORE, "--workers", "1", "--reprob", "0.3", "--mixup", "0.2")
    train(images, tmp_path / "whole", *more)
    process = start(*options(images, tmp_path / "killed", *more))
    for line in process.stderr:
        if line.startswith("epoch 2/3 [2/4]"):
            process.kill()
            break
    assert process.wait() == -signal.SIGKILL
    process.stderr.close()
    assert load(tmp_path / "killed" / "last.pth.tar")["epoch"] == 0
    assert main(options(images, tmp_path / "killed", *more, "--resume", "auto")) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.slow
def test_killed_at_every_step(images, tmp_path):
    """Each process kills itself one step later than the one before; steps are updates, renames and links of files."""
    train(images, tmp_path / "whole", *MORE)
    script = """
        import os, signal, sys
        from topodet.pretrain import engine, main

        left = None

        def dying(function):
            def call(*args, **kwargs):
                global left
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*args, **kwargs)
            return call

        for steps in range(1, 16):
            pid = os.fork()
            if pid == 0:
                left = steps
                engine._update = dying(engine._update)
                os.replace, os.link = dying(os.replace), dying(os.link)
                os._exit(main(sys.argv[1:]))
            print("ended", os.waitpid(pid, 0)[1], flush=True)
    """
    argv = options(images, tmp_path / "killed", *MORE, "--resume", "auto")
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *argv],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    # Gloo of some versions of torch prints lines of its own.
    endings = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("ended ")]
    assert set(endings[:13]) == {str(int(signal.SIGKILL))}
    assert main(argv) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


@pytest.fixture(scope="module")
def first_epoch(images, tmp_path_factory):
    """A run of two epochs that ended after the first, by a kill as the second began."""
    output = tmp_path_factory.mktemp("first_epoch")
    train(images, output, "--model-ema")
    state = load(output / "checkpoint-0.pth.tar")
    for path in output.glob("*.pth.tar"):
        path.unlink()
    torch.save(weights.with_digests(state), output / "last.pth.tar")
    return output


@pytest.fixture
def interrupted(first_epoch, tmp_path):
    return shutil.copytree(first_epoch, tmp_path / "run")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--model", "toponet_small"), "--model 'toponet_nano' -> 'toponet_small'"),
        (("--batch-size", "4"), "--batch-size 8 -> 4"),
        (("--grad-accum-steps", "2"), "--grad-accum-steps 1 -> 2"),
        (("--seed", "1"), "--seed 42 -> 1"),
        (("--opt", "adamw"), "--opt 'sgd' -> 'adamw'"),
        (("--lr", "0.1", "--epochs", "9"), "--lr 0.05 -> 0.1, --epochs 2 -> 9"),
        (("--sparsity", "uniform"), "--sparsity 'none' -> 'uniform'"),
        (("--dataset", "torch/image_folder"), "--dataset '' -> 'torch/image_folder'"),
    ],
)
def test_refuses_another_run(images, interrupted, more, message):
    with pytest.raises(ConfigError, match="was trained with different options") as error:
        train(images, interrupted, "--model-ema", "--resume", "auto", *more)
    assert message in str(error.value)
    assert "--initial-checkpoint" in str(error.value)
    assert load(interrupted / "last.pth.tar")["epoch"] == 0


def test_refuses_other_data(interrupted, tmp_path):
    other = write_images(tmp_path / "other", {"train": 14, "validation": 7})
    with pytest.raises(ConfigError, match="trained on different data: train_images 39 -> 42"):
        train(other, interrupted, "--model-ema", "--resume", "auto")


def test_names_what_makes_it_inexact(images, interrupted, caplog):
    more = ("--workers", "1", "--batch-size", "4", "--grad-accum-steps", "2", "--log-interval", "3")
    with caplog.at_level(logging.WARNING, logger="topodet"):
        rows = train(images, interrupted, "--model-ema", "--resume", "auto", *more)
    assert len(rows) == 2
    warning = next(text for text in caplog.messages if text.startswith("resuming with"))
    assert "--workers 0 -> 1" in warning
    assert "--batch-size 8 -> 4, --grad-accum-steps 1 -> 2" in warning
    assert "log-interval" not in warning


def test_finished_run_is_left_alone(images, interrupted, capsys):
    argv = options(images, interrupted, "--model-ema", "--resume", "auto")
    assert main(argv) == 0
    weights = load(interrupted / "last.pth.tar")["state_dict"]
    assert main(argv) == 0
    assert "all 2 epochs are done" in capsys.readouterr().err
    assert_same_tensors(weights, load(interrupted / "last.pth.tar")["state_dict"])


def test_new_run_does_not_overwrite(images, interrupted):
    with pytest.raises(ConfigError, match="contains the checkpoints of another run.*--resume auto"):
        train(images, interrupted)
    assert load(interrupted / "last.pth.tar")["epoch"] == 0


def test_nothing_to_resume_is_told(images, tmp_path, capsys):
    assert main(options(images, tmp_path / "new", "--resume", "auto", "--epochs", "1")) == 0
    assert f"nothing to resume in {tmp_path / 'new'} yet: starting a new run" in capsys.readouterr().err


def test_resumes_from_a_file_into_another_folder(images, interrupted, tmp_path):
    rows = train(images, tmp_path / "new", "--model-ema", "--resume", str(interrupted / "last.pth.tar"))
    assert [row["epoch"] for row in rows] == [0, 1]
    assert (tmp_path / "new" / "model_best.pth.tar").exists()
    # With nothing left to train, and a last epoch that is worse than the first.
    path = tmp_path / "new" / "last.pth.tar"
    state = load(path)
    state["history"][0]["metric"] = state["history"][1]["metric"] + 1
    torch.save(weights.with_digests(state), path)
    train(images, tmp_path / "third", "--model-ema", "--resume", str(path))
    assert load(tmp_path / "third" / "model_best.pth.tar")["epoch"] == 1


def damaged(path, how):
    data = path.read_bytes()
    if how == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif how == "one bit":
        at = data.index(b"head.fc.weight")  # its name, in the pickle
        path.write_bytes(data[:at] + b"j" + data[at + 1 :])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "pickle":
        torch.save({"state_dict": logging.getLogger("payload")}, path)
    elif how == "weights only":
        torch.save({"state_dict": torch.load(path, weights_only=True)["state_dict"]}, path)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("truncated", r"last.pth.tar .*cannot be read: it is truncated, damaged or not a torch file"),
        ("empty", r"last.pth.tar is refused: it is empty \(0 bytes\)"),
        ("pickle", r"last.pth.tar is refused: .*logging"),
        ("one bit", r"last.pth.tar .*damaged"),
        ("weights only", r"not a checkpoint of a pretraining run \(no arch, .*--initial-checkpoint"),
    ],
)
def test_refuses_a_damaged_checkpoint(images, interrupted, how, message):
    damaged(interrupted / "last.pth.tar", how)
    with pytest.raises(WeightsError, match=message):
        train(images, interrupted, "--model-ema", "--resume", "auto")


def test_goes_on_from_the_newest_good_checkpoint(images, tmp_path, caplog):
    more = ("--epochs", "3", "--checkpoint-hist", "3")
    train(images, tmp_path / "whole", *more)
    run = shutil.copytree(tmp_path / "whole", tmp_path / "run")
    damaged(run / "last.pth.tar", "truncated")
    damaged(run / "checkpoint-2.pth.tar", "one bit")
    # Whoever names the damaged one is told of the good one.
    with pytest.raises(
        WeightsError, match=r"last.pth.tar .*newest good checkpoint .*checkpoint-1.pth.tar, of epoch 1: give"
    ):
        train(images, run, *more, "--resume", str(run / "last.pth.tar"))
    with caplog.at_level(logging.WARNING, logger="topodet"):
        rows = train(images, run, *more, "--resume", "auto")
    assert [row["epoch"] for row in rows] == [0, 1, 2]
    assert f"resuming from {run / 'checkpoint-1.pth.tar'} instead, of epoch 1" in caplog.text
    assert_same_tensors(load(run / "last.pth.tar")["state_dict"], load(tmp_path / "whole/last.pth.tar")["state_dict"])
    # A new run does not overwrite what is left of this one.
    (run / "last.pth.tar").unlink()
    with pytest.raises(ConfigError, match="contains the checkpoints of another run"):
        train(images, run, *more)


@pytest.mark.slow
def test_two_runs_do_not_share_a_folder(images, tmp_path, capsys):
    """The second one is refused and named the first, and a kill leaves nothing that blocks."""
    argv = options(images, tmp_path, "--epochs", "50", "--workers", "1")
    first = start(*argv)
    try:
        for line in first.stderr:
            if line.startswith("epoch 1/50 [1/4]"):
                break
        for more in ((), ("--resume", "auto")):
            assert main([*argv, *more]) == 1
            error = capsys.readouterr().err
            assert f"error: {tmp_path} is in use by process {first.pid} on " in error
            assert "--experiment" in error
        assert first.poll() is None
    finally:
        first.kill()
        first.wait()
        first.stderr.close()
    # At once, while its loader process may not have noticed yet.
    with hold(tmp_path):
        pass


def test_a_folder_is_free_again_after_its_run(tmp_path):
    for _ in range(2):
        with hold(tmp_path / "run"):
            assert json.loads((tmp_path / "run" / ".lock").read_text())["pid"] == os.getpid()
        assert not (tmp_path / "run").exists()  # nothing was written there
    with hold(tmp_path / "run"):
        (tmp_path / "run" / "args.yaml").write_text("")
    assert (tmp_path / "run" / "args.yaml").exists()
    (tmp_path / "file").write_text("")
    nowhere = tmp_path / "file" / "run"
    with pytest.raises(OSError, match=r"cannot write to .*file/run: .*another --output"), hold(nowhere):
        pass


def test_refuses_a_missing_checkpoint(images, tmp_path):
    with pytest.raises(WeightsError, match=r"the checkpoint to resume from, '.*gone.pth.tar', does not exist"):
        train(images, tmp_path, "--resume", str(tmp_path / "gone.pth.tar"))
