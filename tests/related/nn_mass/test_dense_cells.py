import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from topodet.errors import ConfigError, TopologyError
from topodet.related.nn_mass import nn_mass
from topodet.related.nn_mass.cells import nn_mass_of_cells
from topodet.related.nn_mass.dense_cells import dense_cnn, dense_mlp

CELLS = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 7), st.integers(0, 12)), min_size=1, max_size=3)


@settings(max_examples=20)
@given(CELLS, st.sampled_from(["mlp", "cnn"]), st.integers(0, 5))
def test_mass_of_a_generated_network_is_that_of_its_cells(cells, kind, seed):
    if kind == "mlp":
        model, image = dense_mlp(cells, in_features=5, num_classes=3, seed=seed), torch.randn(2, 5)
    else:
        model, image = dense_cnn(cells, in_chans=2, num_classes=3, seed=seed), torch.randn(2, 2, 8, 8)
    expected, found = nn_mass_of_cells(cells), nn_mass(model)
    assert found.densities == expected.densities
    assert found.mass == expected.mass
    assert [cell.cell for cell in model.cells] == cells
    assert model(image).shape == (2, 3)


@given(st.integers(1, 6), st.integers(2, 8), st.integers(0, 20), st.integers(0, 10))
def test_what_a_layer_reads(width, depth, skip_channels, seed):
    (cell,) = dense_mlp([(width, depth, skip_channels)], in_features=4, num_classes=2, seed=seed).cells
    for i, layer in enumerate(cell.layers[1:], 1):
        reads = layer.reads.tolist()
        assert len(set(reads)) == len(reads)
        before, predecessor = set(range(width * (i - 1))), set(range(width * (i - 1), width * i))
        assert predecessor <= set(reads)
        skips = set(reads) - predecessor
        assert skips <= before
        assert len(skips) == min(len(before), skip_channels)


def test_a_network_computes_what_its_wiring_says():
    """Layer by layer, with plain indexing of the outputs."""
    model = dense_mlp([(3, 5, 4), (4, 4, 2)], in_features=6, num_classes=2, act_layer=nn.Tanh).double()
    image = torch.randn(7, 6, dtype=torch.float64)
    x = image
    for cell in model.cells:
        linear = cell.layers[0][0]
        outputs = torch.tanh(x @ linear.weight.T + linear.bias)
        for layer in cell.layers[1:]:
            linear = layer.layer[0]
            outputs = torch.cat([outputs, torch.tanh(outputs[:, layer.reads] @ linear.weight.T + linear.bias)], dim=1)
        x = outputs[:, -cell.width :]
    assert torch.allclose(model(image), x @ model.head.weight.T + model.head.bias, atol=1e-12)


def test_width_multiplier_widens_every_layer():
    model = dense_cnn([(16, 8, 10), (32, 8, 20), (64, 8, 40)], in_chans=3, num_classes=10, width_multiplier=2)
    widths = [{layer.out_channels for layer in cell.modules() if isinstance(layer, nn.Conv2d)} for cell in model.cells]
    assert widths == [{32}, {64}, {128}]
    assert nn_mass(model).mass == pytest.approx(160, abs=1e-9)  # the authors' row of wm 2
    maps = []
    for cell in model.cells:
        cell.register_forward_hook(lambda cell, args, output: maps.append(tuple(output.shape[1:])))
    model(torch.randn(1, 3, 16, 16))
    assert maps == [(32, 16, 16), (64, 8, 8), (128, 4, 4)]


def test_draws_are_seeded_and_saved_with_the_weights():
    options = {"in_features": 8, "num_classes": 2}
    first, same, other = (dense_mlp([(4, 6, 5)], seed=seed, **options) for seed in (0, 0, 1))

    def reads(model):
        return [layer.reads.tolist() for layer in model.cells[0].layers[1:]]

    assert reads(first) == reads(same) != reads(other)
    other.load_state_dict(first.state_dict())
    assert reads(other) == reads(first)
    x = torch.randn(3, 8)
    assert torch.equal(other(x), first(x))


def test_skip_channels_are_drawn_from_all_earlier_layers():
    counts = torch.zeros(8)
    for seed in range(200):
        (cell,) = dense_mlp([(2, 6, 3)], in_features=2, num_classes=2, seed=seed).cells
        counts += torch.bincount(cell.layers[5].reads, minlength=10)[:8]
    # Each of the 8 channels is among the 3 with probability 3/8: 75 of 200, standard deviation 6.8.
    assert torch.all((counts - 75).abs() < 4 * 6.8)


@pytest.mark.parametrize(("fan", "grows"), [("fan_in", False), ("fan_out", True)])
def test_initialization(fan, grows):
    model = dense_mlp([(64, 8, 400)], in_features=64, num_classes=2, fan=fan)
    for layer in model.cells[0].layers[1:]:
        linear = layer.layer[0]
        assert linear.weight.var().item() == pytest.approx(2 / (64 if grows else linear.in_features), rel=0.1)
        assert not linear.bias.any()


@pytest.mark.parametrize("make", [dense_mlp, dense_cnn])
def test_every_parameter_gets_a_gradient(make):
    options = {"in_features": 4} if make is dense_mlp else {"in_chans": 4}
    model = make([(3, 4, 2), (4, 3, 9)], num_classes=2, act_layer=nn.ELU, **options)
    model(torch.randn(5, 4) if make is dense_mlp else torch.randn(5, 4, 6, 6)).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: dense_mlp([], in_features=4, num_classes=2), TopologyError, "needs at least one cell"),
        (lambda: dense_mlp([(4, 0, 1)], in_features=4, num_classes=2), TopologyError, "depth must be a whole number"),
        (lambda: dense_mlp([(4, 4, 1)], in_features=0, num_classes=2), ConfigError, "got 0 inputs and num_classes=2"),
        (
            lambda: dense_mlp([(4, 4, 1)], in_features=4, num_classes=2, fan="fan_inn"),
            ConfigError,
            "unknown fan 'fan_inn'. Did you mean 'fan_in'",
        ),
        (
            lambda: dense_cnn([(4, 4, 1)], in_chans=1, num_classes=2, width_multiplier=0.1),
            TopologyError,
            "width must be a whole number of at least 1, got 0",
        ),
    ],
)
def test_what_makes_no_network_is_named(make, error, message):
    with pytest.raises(error, match=re.escape(message)):
        make()
