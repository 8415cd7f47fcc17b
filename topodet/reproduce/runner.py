"""Run what is missing of a study, seed by seed, and record each finished run.

Several runners can share a study, on one machine or on a shared file system: a runner locks a file next to the run's
folder, and the lock ends with its process.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..files import atomic_json
from ..parse import read_json
from .jobs import Job, Machines
from .record import make_record, save_record

# From a shell line and the seconds left for it (None for no limit) to its exit status.
Execute = Callable[[str, "float | None"], int]
OUT_OF_TIME = 124  # as for timeout(1)
_SECONDS_TO_STOP = 60.0


def run_line(line: str, seconds: float | None, *, folder: Path | None = None) -> int:
    """Run a shell line and return its exit status; on a timeout it is interrupted, and killed a minute later.

    `python` and the scripts next to it are those of the current Python.

    Args:
        line: a line for bash.
        seconds: time until it is interrupted; None for never.
        folder: folder in which it runs; the working folder by default.
    """
    here = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    here["PYTHONPATH"] = os.pathsep.join(filter(None, [str(folder or Path.cwd()), here.get("PYTHONPATH")]))
    process = subprocess.Popen(
        ["bash", "-c", line], env=here, cwd=folder, start_new_session=True, preexec_fn=_take_interrupts
    )
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        _stop(process)
        return OUT_OF_TIME
    except BaseException:
        _stop(process)
        raise


def _take_interrupts() -> None:
    """Reset SIGINT: a shell starts background jobs with SIGINT ignored, and children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _stop(process: subprocess.Popen) -> None:
    """End a process and its children, first by an interrupt, so that a training can print how to continue."""
    os.killpg(process.pid, signal.SIGINT)
    try:
        process.wait(_SECONDS_TO_STOP)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@dataclass(frozen=True)
class State:
    """The progress of a job.

    Attributes:
        job: the job.
        word: "done", "running", "stopped" or "missing".
        share: share of its epochs that are done.
        hours: hours that it has taken so far, as far as it was run from here.
    """

    job: Job
    word: str
    share: float
    hours: float


def state_of(job: Job) -> State:
    """Return the progress of a job, from its record, its lock and its folder."""
    hours = sum(session.get("seconds", 0.0) for session in sessions(job)) / 3600
    if job.record.exists():
        return State(job, "done", 1.0, read_json(job.record).get("hours") or hours)
    epochs = job.epochs()
    share = epochs[0] / epochs[1] if epochs else 0.0
    with _locked(job, make=False) as free:
        if not free:
            return State(job, "running", share, hours)
    return State(job, "stopped" if job.folder.exists() else "missing", share, hours)


def hours_left(states: Sequence[State]) -> float:
    """Return the hours left: for each run, those of its arm's recorded runs, otherwise the study's guess."""
    left = 0.0
    for state in states:
        if state.word == "done":
            continue
        arm = (state.job.study.name, state.job.arm.name)
        took = [s.hours for s in states if s.word == "done" and s.hours and (s.job.study.name, s.job.arm.name) == arm]
        whole = sum(took) / len(took) if took else state.job.arm.hours
        left += whole * (1 - state.share)
    return left


def missing_jobs(jobs: Sequence[Job]) -> list[Job]:
    """Return the jobs to run: those without a record, and those whose checkpoint one of these needs.

    A record may come from another machine, without the folder of its run.
    """
    found: list[Job] = []
    for job in reversed(jobs):  # jobs come after those they need
        gone = job.arm.kind == "pretrain" and not (job.folder / "last.pth.tar").exists()
        if not job.record.exists() or (gone and any(job in later.needs() for later in found)):
            found.insert(0, job)
    return found


def run_jobs(
    jobs: Sequence[Job],
    machines: Machines,
    *,
    commit: str,
    budget: float | None = None,
    execute: Execute = run_line,
    told: Callable[[str], None] = print,
) -> bool:
    """Run the jobs without a record, in order; return whether everything is done.

    Runs that another process has locked are skipped, and so are runs that start from them. A failed run does not stop
    those that do not need it.

    Args:
        jobs: jobs in an order in which required ones come first.
        machines: machines of each run.
        commit: commit of the code, for the records.
        budget: hours until the current run is interrupted; None for no limit.
        execute: runs a shell line.
        told: called with a line about each job.
    """
    ends = None if budget is None else time.monotonic() + 3600 * budget
    left = missing_jobs(jobs)
    for job in left:
        if ends is not None and time.monotonic() >= ends:
            told("the budget is used up; the same command continues from here")
            break
        waiting = [needed.name for needed in job.needs() if not _ready(needed)]
        if waiting:
            told(f"{job.name}: waits for {', '.join(waiting)}")
        elif machines.rank and job.arm.kind in ("damage", "tool"):
            _wait_for(job.record)  # node 0 runs it
        elif machines.rank:
            _run(job, machines, execute, ends)
        else:
            with _locked(job) as free:
                if not free:
                    told(f"{job.name}: another process runs it")
                elif not _ready(job):
                    _run_and_record(job, machines, commit, execute, ends, told)
    return all(map(_ready, left))


def _ready(job: Job) -> bool:
    """Whether a job is recorded and can be started from."""
    return job.record.exists() and (job.arm.kind != "pretrain" or (job.folder / "last.pth.tar").exists())


def _run_and_record(
    job: Job, machines: Machines, commit: str, execute: Execute, ends: float | None, told: Callable[[str], None]
) -> None:
    lines = job.lines(machines)
    told(f"{job.study.name}-{job.scale.name} {job.name}:")
    for line in lines:
        told(f"  {line}")
    earlier = sessions(job)
    began, now = time.monotonic(), datetime.now(timezone.utc).isoformat(timespec="seconds")
    session = {"began": now, "commit": commit, "lines": lines}
    atomic_json(_sessions_file(job), [*earlier, session])
    status = _run(job, machines, execute, ends)
    session["seconds"] = round(time.monotonic() - began, 1)
    atomic_json(_sessions_file(job), [*earlier, session])
    if status == OUT_OF_TIME:
        told(f"{job.name}: interrupted, the budget is used up; the same command continues it")
    elif status:
        told(f"{job.name}: failed with exit status {status}")
    else:
        told(f"{job.name}: {save_record(make_record(job, sessions(job)), job.record)}")


def _run(job: Job, machines: Machines, execute: Execute, ends: float | None) -> int:
    status = 0
    for line in job.lines(machines):
        status = execute(line, None if ends is None else max(1.0, ends - time.monotonic()))
        if status:
            break
    return status


def sessions(job: Job) -> list[dict[str, Any]]:
    """Return the sessions of the processes that worked on a job: start time, commit, lines and seconds.

    Raises:
        DataError: the file of sessions is damaged; without the file, the record lacks this information.
    """
    path = _sessions_file(job)
    return read_json(path) if path.exists() else []


def _sessions_file(job: Job) -> Path:
    return job.folder.with_name(f"{job.folder.name}.sessions.json")


def _wait_for(path: Path) -> None:
    while not path.exists():
        time.sleep(10)


@contextmanager
def _locked(job: Job, *, make: bool = True) -> Iterator[bool]:
    """Hold the lock of a job; yield False if another process has it."""
    path = job.folder.with_name(f"{job.folder.name}.lock")
    if not make and not path.exists():
        yield True
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
