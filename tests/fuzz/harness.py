"""Changed inputs, read one by one in a process of their own, which may end in any way."""

from __future__ import annotations

import gc
import multiprocessing
import os
import random
import resource
import shutil
import tempfile
import traceback
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

from tests.fuzz.inputs import Kind, kinds
from tests.fuzz.mutations import Payload
from topodet.errors import TopodetError

TIME = 20.0  # seconds that a reader may take
MEMORY = 4 << 30  # bytes that reading an input may add
# The columns of the table; an input counts in the last one that applies.
READ, NAMED, OTHER, HANG, LARGE, EXECUTED = "read", "named error", "other exception", "hang", "over 4 GB", "executed"
OUTCOMES = (READ, NAMED, OTHER, HANG, LARGE, EXECUTED)
_PER_PROCESS = 400


@dataclass
class Findings:
    """How many inputs of each kind ended how, and what is wrong with those that should have ended otherwise.

    Attributes:
        counts: of each kind, by outcome.
        wrong: texts of the inputs whose outcome is neither `READ` nor `NAMED`, by outcome and place in the code.
    """

    counts: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    wrong: dict[str, str] = field(default_factory=dict)

    @property
    def bad(self) -> int:
        """Inputs that ended in anything but a result or a named error."""
        return sum(row[outcome] for row in self.counts.values() for outcome in OUTCOMES[2:])

    def add(self, index: int, kind: str, outcome: str, text: str) -> None:
        """Count one input."""
        self.counts[kind][outcome] += 1
        if outcome not in (READ, NAMED):
            place = next((line for line in reversed(text.splitlines()) if "topodet" in line), "").strip()
            self.wrong.setdefault(f"{outcome} {kind} {place}", f"input {index} ({kind}): {outcome}\n{text}")

    def merge(self, other: Findings) -> None:
        """Add what was found in other inputs."""
        for kind, row in other.counts.items():
            self.counts[kind] += row
        self.wrong = other.wrong | self.wrong

    def table(self) -> str:
        """Return the counts as a table in Markdown, the sums last."""
        total = sum(self.counts.values(), Counter())
        rows = [*sorted(self.counts.items()), ("all", total)]
        lines = ["| input | inputs | " + " | ".join(OUTCOMES) + " |", "| --- |" + " ---: |" * (len(OUTCOMES) + 1)]
        lines += [
            f"| {name} | {row.total():,} | " + " | ".join(f"{row[o]:,}" for o in OUTCOMES) + " |" for name, row in rows
        ]
        return "\n".join(lines)


def fuzz(
    indices: range,
    seed: int,
    make: Callable[[Path], dict[str, Kind]] = kinds,
    *,
    time: float = TIME,
    memory: int = MEMORY,
) -> Findings:
    """Make, change and read the inputs of these numbers.

    Args:
        indices, seed: which inputs they are follows from the number, the seed and the kinds alone.
        make: the kinds, from a folder for good inputs of them.
        time: seconds that a reader may take.
        memory: bytes that reading an input may add.
    """
    findings = Findings()
    left = list(indices)
    with tempfile.TemporaryDirectory(prefix="fuzz") as folder:
        root = Path(folder)
        Payload.canary = str(root / "canary")
        (root / "good").mkdir()
        known = make(root / "good")
        fork = multiprocessing.get_context("fork")
        while left:
            ours, theirs = fork.Pipe()
            process = fork.Process(
                target=_work, args=(theirs, known, root, left[:_PER_PROCESS], seed, memory), daemon=True
            )
            process.start()
            theirs.close()
            try:
                while left:
                    # What begins, which tells whose end does not come, whenever a reader begins, and how it ended.
                    kind = _receive(ours, time)
                    if kind is None:
                        break  # the process has done its share
                    try:
                        while (message := _receive(ours, time)) is None:
                            pass
                        outcome, text = message
                    except TimeoutError:
                        findings.add(left.pop(0), kind, HANG, f"no end within {time:g} s")
                        break
                    except EOFError:
                        process.join(5)
                        findings.add(left.pop(0), kind, OTHER, f"the process died, exit code {process.exitcode}")
                        break
                    findings.add(left.pop(0), kind, outcome, text)
            finally:
                process.kill()
                process.join()
                ours.close()
    return findings


def _receive(connection: Connection, time: float):
    if not connection.poll(time):
        raise TimeoutError
    return connection.recv()


def _work(
    connection: Connection, known: dict[str, Kind], root: Path, indices: list[int], seed: int, memory: int
) -> None:
    warnings.simplefilter("ignore")
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + memory, resource.RLIM_INFINITY))
    names = list(known)
    for index in indices:
        name = names[index % len(names)]
        connection.send(name)
        connection.send(_read(random.Random(f"{seed}-{index}"), known[name], root, connection))
        gc.collect(0)
    connection.send(None)


def _read(rng: random.Random, kind: Kind, root: Path, connection: Connection) -> tuple[str, str]:
    """Return how an input ended in the worst of its readers, and the traceback of that."""
    folder = root / "input"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    path = kind.write(rng, folder)
    found = (READ, "")
    for reader in kind.readers:
        connection.send(None)
        try:
            reader(path)
            outcome = (READ, "")
        except BaseException as error:
            large = _asked_for_too_much(error)
            text = "".join(traceback.format_exception(error, limit=-12))[-4000:]
            outcome = (LARGE if large else NAMED if isinstance(error, TopodetError) else OTHER), text
        if os.path.exists(Payload.canary):
            os.unlink(Payload.canary)
            outcome = (EXECUTED, f"{reader}: a payload ran")
        found = max(found, outcome, key=lambda pair: OUTCOMES.index(pair[0]))
    return found


def _asked_for_too_much(error: BaseException | None) -> bool:
    """Tell whether memory ran out, whatever the error that was made of it."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False
