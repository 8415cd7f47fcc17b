import numpy as np
import pytest
import torch

from topodet.costs import check_request, synthetic_images, table
from topodet.errors import ConfigError


def test_table():
    columns = {"parameters": {"": 1234567, "a": 1234567, "a.b": 12, "c": 0, "a.b.c": 5}, "activations": {"": 0, "d": 7}}
    assert table(columns, depth=2).splitlines() == [
        "module  parameters  activations",
        "(all)      1.235 M            0",
        "a          1.235 M            0",
        "a.b             12            0",
        "d                0            7",
    ]
    assert "a.b" not in table(columns, depth=1)


def test_noise_is_the_same_each_time():
    assert torch.equal(*(synthetic_images(1, 4, 6)[0] for _ in range(2)))


def test_requests():
    check_request(["flop"], size=(4, 6), inputs=[], num_inputs=1, depth=1)
    for changes in ({"depth": 0}, {"num_inputs": -1}, {"size": (0, 4)}, {"size": (4,)}, {"tasks": []}):
        with pytest.raises(ConfigError, match="must be"):
            check_request(**{"tasks": ["flop"], "size": (4, 6), "inputs": [], "num_inputs": 1, "depth": 1, **changes})
    image = np.zeros((3, 4, 6), np.uint8)  # channels first
    with pytest.raises(ConfigError, match=r"a uint8 array \[3, 4, 6\]; expected RGB"):
        check_request(["flop"], size=(4, 6), inputs=[image], num_inputs=1, depth=1)
