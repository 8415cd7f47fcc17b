import gc
import os

# Two test workers on two cores: threads of their own would only get into each other's way.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import settings

settings.register_profile("topodet", deadline=None, derandomize=True, max_examples=40)
settings.load_profile("topodet")


def pytest_collection_finish():
    """Leave what the imports made out of every later collection: MMEngine asks for one whenever it opens a dataset."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _no_process_group_is_left():
    """A group that one test leaves would fail every later one of this process that makes its own."""
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        pytest.fail("the test left a process group; end it, or start its processes by tests.processes.run_two")


@pytest.fixture
def small_zoo(monkeypatch):
    """Pages of the zoo count one TopoNet: counting all takes seconds, and a test of the repository's own zoo does."""
    from topodet.records import zoo

    monkeypatch.setattr(zoo, "ARCHITECTURES", ("toponet_nano",))
