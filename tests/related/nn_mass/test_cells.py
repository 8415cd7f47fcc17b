import itertools
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from topodet.errors import TopologyError
from topodet.related.nn_mass.cells import nn_mass_of_cells

CELLS = st.tuples(st.integers(1, 20), st.integers(1, 15), st.integers(0, 200))


@pytest.mark.parametrize(
    ("cells", "densities", "mass"),
    [
        ([(8, 4, 20)], [1.0], 32.0),
        ([(8, 8, 10)], [0.345238], 22.0952380952),
        ([(16, 32, 50)], [0.194355], 99.5096774194),
        ([(32, 13, 40), (64, 13, 80), (128, 13, 125)], [0.204545, 0.204545, 0.162760], 526.1060606061),
        ([(32, 8, 10), (64, 8, 20), (128, 8, 40)], [0.089286] * 3, 160.0),
    ],
)
def test_values_of_the_authors_code(cells, densities, mass):
    found = nn_mass_of_cells(cells)
    assert found.densities == pytest.approx(densities, abs=1e-6)
    assert found.mass == pytest.approx(mass, abs=1e-6)


@given(CELLS)
def test_counted_channel_by_channel(cell):
    """Every pair of a channel and a later layer that is not the next one could be a skip; t of a layer's are."""
    width, depth, skip_channels = cell
    skips = possible = 0
    for layer in range(depth):
        beyond = sum(1 for _ in itertools.product(range(layer - 1), range(width)))
        possible += beyond
        skips += min(beyond, skip_channels)
    found = nn_mass_of_cells([cell])
    assert found.cells[0].channels == width * depth
    assert (found.cells[0].skips, found.cells[0].possible) == (skips, possible)
    assert found.densities[0] == (skips / possible if possible else 0)


@given(st.lists(CELLS, min_size=1, max_size=4))
def test_bounds_and_sum(cells):
    found = nn_mass_of_cells(cells)
    assert all(0 <= density <= 1 for density in found.densities)
    assert found.mass == pytest.approx(sum(nn_mass_of_cells([cell]).mass for cell in cells))
    assert found.mass <= sum(width * depth for width, depth, _ in cells)
    assert nn_mass_of_cells([(width, depth, skips + 1) for width, depth, skips in cells]).mass >= found.mass
    assert nn_mass_of_cells([(width, depth, 0) for width, depth, _ in cells]).mass == 0


def test_numpy_numbers_are_numbers():
    assert nn_mass_of_cells(np.array([[8, 4, 20]])) == nn_mass_of_cells([(8, 4, 20)])


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ([], "needs at least one cell"),
        ([(8, 4)], "cell 0 must be (width, depth, skip_channels), got (8, 4)"),
        ([(8, 4, 20), 7], "cell 1 must be (width, depth, skip_channels), got 7"),
        ([(0, 4, 20)], "cell 0: width must be a whole number of at least 1, got 0"),
        ([(8, 0, 20)], "cell 0: depth must be a whole number of at least 1, got 0"),
        ([(8, 4, -1)], "cell 0: skip_channels must be a whole number of at least 0, got -1"),
        ([(8, 4.5, 1)], "cell 0: depth must be a whole number of at least 1, got 4.5"),
        ([(True, 4, 1)], "width must be a whole number"),
    ],
)
def test_what_is_no_cell_is_named(cells, message):
    with pytest.raises(TopologyError, match=re.escape(message)):
        nn_mass_of_cells(cells)
