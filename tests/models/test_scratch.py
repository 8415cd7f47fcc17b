import gc
import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from topodet.models import scratch
from topodet.models.scratch import borrow


@pytest.fixture(autouse=True)
def nothing_else():
    gc.collect()
    scratch.release()


def test_a_tensor_of_any_type():
    for dtype in (torch.float32, torch.float64):
        x = borrow((3, 5, 7), dtype).fill_(2)
        assert (x.shape, x.dtype, x.sum()) == ((3, 5, 7), dtype, 210)
        assert x.data_ptr() % 64 == 0
    assert borrow((3, 0), torch.float32).numel() == 0


def test_memory_comes_back_with_the_last_view():
    x = borrow((4, 100), torch.float32)
    place, view = x.data_ptr(), x[1].view(10, 10)
    del x
    other = borrow((4, 100), torch.float32).fill_(1)
    assert other.data_ptr() != place
    view.fill_(2)
    assert (other == 1).all()
    del view
    assert borrow((100,), torch.float32).data_ptr() == place  # for something smaller, too


def test_too_small_a_buffer_makes_way():
    small = borrow((10,), torch.float32)
    del small
    large = borrow((1000,), torch.float32)
    place = large.data_ptr()
    assert not scratch._free
    del large
    middle = borrow((500,), torch.float32)
    assert middle.data_ptr() == place
    del middle
    assert borrow((1000,), torch.float32).data_ptr() == place  # as large as it was


def test_of_equal_ones_that_which_came_back_last():
    lent = [borrow((100,), torch.float32) for _ in range(3)]
    places = [x.data_ptr() for x in lent]
    for k in (2, 0, 1):
        lent[k] = None
    assert [borrow((100,), torch.float32).data_ptr()] == [places[1]]
    kept = [borrow((100,), torch.float32) for _ in range(3)]
    assert [x.data_ptr() for x in kept] == [places[k] for k in (1, 0, 2)]


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 2000)), max_size=40))
def test_never_more_than_were_in_use(steps):
    scratch.release()
    lent, most, largest = {}, 0, 0
    for slot, size in steps:
        lent.pop(slot, None)
        lent[slot] = borrow((size,), torch.uint8).fill_(slot)
        most, largest = max(most, len(lent)), max(largest, size)
        assert all((tensor == k).all() for k, tensor in lent.items())
        assert len(lent) + len(scratch._free) <= most
        assert all(memory.nbytes <= largest for memory in scratch._free.values())


def test_threads():
    def work(number):
        for n in range(300):
            x = borrow((100 + n % 7,), torch.float32).fill_(number)
            assert (x == number).all()

    failed = []
    threading.excepthook, before = lambda problem: failed.append(problem), threading.excepthook
    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    threading.excepthook = before
    assert not failed
