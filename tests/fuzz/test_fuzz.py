"""A short form of `make fuzz`."""

import os
import time

import pytest

from tests.fuzz import harness
from tests.fuzz.inputs import Kind
from tests.fuzz.mutations import Payload
from topodet.errors import DataError


def test_changed_files_end_in_named_errors():
    findings = harness.fuzz(range(150), seed=1)
    assert sum(row.total() for row in findings.counts.values()) == 150
    assert not findings.bad, "\n".join(findings.wrong.values())


ENDINGS = {
    harness.READ: lambda path: None,
    harness.NAMED: lambda path: (_ for _ in ()).throw(DataError("named")),
    harness.OTHER: lambda path: 1 / 0,
    harness.LARGE: lambda path: bytearray(1 << 34),
    harness.HANG: lambda path: time.sleep(60),
    harness.EXECUTED: lambda path: os.system(f"touch '{Payload.canary}'"),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_every_end_is_noticed(ending):
    kind = Kind(lambda rng, folder: folder, (ENDINGS[ending],))
    findings = harness.fuzz(range(2), 0, lambda good: {"a": kind}, time=0.5)
    assert findings.counts == {"a": {ending: 2}}
    assert findings.bad == (0 if ending in (harness.READ, harness.NAMED) else 2)
    assert "all | 2 |" in findings.table()


def test_a_process_that_dies_is_an_exception():
    kind = Kind(lambda rng, folder: folder, (lambda path: os._exit(3),))
    findings = harness.fuzz(range(1), 0, lambda good: {"a": kind})
    assert findings.counts == {"a": {harness.OTHER: 1}}
    assert "exit code 3" in next(iter(findings.wrong.values()))
