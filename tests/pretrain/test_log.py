"""What a run tells while it goes on."""

from __future__ import annotations

import io
import logging
import sys
import time

import torch

from topodet.pretrain.log import Progress, RunLogger, logging_to_stderr

from .helpers import curve


class Terminal(io.StringIO):
    def isatty(self):
        return True


def report(progress):
    progress.start_epoch(1)
    for update in (1, 2):
        progress.step()
        progress.report(update, loss=2.5, penalty=0.125, top1=12.5, images_per_s=640.0, lr=0.05)
    progress.end_epoch()


def test_bar_on_a_terminal(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    report(Progress(epochs=3, updates=2, done=2, show=True))
    text = terminal.getvalue()
    assert "epoch 2/3" in text
    assert "loss 2.5000 + penalty 0.1250  top-1 12.50 %  640 images/s  eta 00:00  lr 0.05" in text
    assert "100%" in text


def test_one_line_a_report_elsewhere(capsys):
    with logging_to_stderr(logging.INFO):
        report(Progress(epochs=3, updates=2, done=2, show=True))
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["epoch 2/3 [1/2]", "epoch 2/3 [2/2]"]
    assert lines[1].endswith("loss 2.5000 + penalty 0.1250  top-1 12.50 %  640 images/s  eta 00:00  lr 0.05")


def test_other_processes_are_quiet(capsys):
    with logging_to_stderr(logging.WARNING):
        report(Progress(epochs=3, updates=2, done=2, show=False))
    assert capsys.readouterr().err == ""


def test_time_to_go_counts_what_this_process_did(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("topodet.pretrain.log.time.monotonic", lambda: now[0])
    progress = Progress(epochs=4, updates=10, done=20, show=True)
    progress.start_epoch(2)
    now[0] += 10.0
    # 5 updates in 10 s since the resume at update 20 of 40; 15 are left.
    assert progress._eta(5) == "00:30"


def test_what_is_resumed_within_a_second_is_read_in_order(tmp_path):
    """By name a file of the same second is read first if its process has the lower number."""
    for first in (0, 2):
        run_logger = RunLogger(tmp_path, torch.nn.Identity(), figure_interval=0, first_update=first)
        run_logger.updates(first + 1, [{"loss": float(first + k)} for k in (1, 2)])
        run_logger.board.close()
        if first == 0:
            (file,) = (tmp_path / "tensorboard").iterdir()
            # A name that sorts after any other of this second.
            file.rename(file.with_name(f"events.out.tfevents.{int(time.time()):010d}.~"))
    assert curve(tmp_path) == [1.0, 2.0, 3.0, 4.0]
