import itertools
import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from topodet.errors import ConfigError, TopologyError, WeightsError
from topodet.related.nnstd.distance import nnstd_of_layers
from topodet.related.nnstd.networks import channel_graphs, distance_figure, distances, nnstd
from topodet.related.nnstd.set import SET


def network(seed=0, share=0.3):
    """A small network of every kind of layer, with few kernels and weights left."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.Conv2d(8, 12, 1),
        nn.ReLU(),
        nn.Conv2d(12, 8, 3, padding=1, groups=2),
        nn.Flatten(),
        nn.Linear(8 * 2 * 2, 10),
        nn.ReLU(),
        nn.Linear(10, 4),
    ).eval()
    with torch.no_grad():
        for layer in model:
            if isinstance(layer, nn.Conv2d | nn.Linear):
                kept = torch.rand(layer.weight.shape[:2]) < (1 if layer.weight.shape[1] == 1 else share)
                layer.weight.mul_(kept.view(*kept.shape, *(1 for _ in layer.weight.shape[2:])))
    return model


def edges_by_effect(layer, n_in, size=2):
    """Which inputs change which outputs of a layer, by changing them one at a time; channels where it takes images."""
    like = torch.zeros(1, n_in) if isinstance(layer, nn.Linear) else torch.zeros(1, n_in, size, size)
    found = np.zeros((n_in, layer.weight.shape[0]), dtype=bool)
    for k in range(n_in):
        changed = like.clone()
        changed[0, k] = 1
        effect = (layer(changed) - layer(like)).abs().flatten(2 if like.ndim > 2 else 1)
        found[k] = (effect[0].sum(dim=-1) if like.ndim > 2 else effect[0]).detach().numpy() > 0
    return found


def test_graphs_are_what_inputs_do_to_outputs():
    model = network()
    graphs = channel_graphs(model)
    assert list(graphs) == ["0", "3", "4", "6", "8", "10"]
    for name in ("0", "3", "4", "6", "10"):
        layer = model[int(name)]
        assert np.array_equal(graphs[name].toarray(), edges_by_effect(layer, graphs[name].shape[0]))
    flattened = edges_by_effect(model[8], 8 * 2 * 2)
    assert np.array_equal(graphs["8"].toarray(), flattened.reshape(8, 4, 10).any(axis=1))


def test_threshold_is_on_the_largest_weight_of_a_kernel():
    layer = nn.Conv2d(2, 1, (1, 2), bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[[[0.1, -0.5]], [[0.2, 0.2]]]]))
    for threshold, edges in ((0, [1, 1]), (0.1, [1, 1]), (0.3, [1, 0]), (0.6, [0, 0])):
        assert channel_graphs(layer, threshold=threshold)["weight"].toarray().ravel().tolist() == edges


def with_channels_in_another_order(model, seed):
    """The same function with the hidden channels renumbered."""
    rng = np.random.default_rng(seed)
    first, hidden = rng.permutation(8), rng.permutation(10)
    # A convolution with groups keeps its groups: channels move inside them, and groups as wholes.
    last = np.concatenate([rng.permutation(6) + 6, rng.permutation(6)])
    grouped = np.concatenate([rng.permutation(4) + 4, rng.permutation(4)])
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name in [key for key in state if key.startswith(("0.", "1.", "3.")) and state[key].ndim]:
        state[name] = state[name][first]
    state["4.weight"], state["4.bias"] = state["4.weight"][last][:, first], state["4.bias"][last]
    weight = state["6.weight"][grouped]
    state["6.weight"] = torch.cat([weight[:4][:, last[:6] - 6], weight[4:][:, last[6:]]])
    state["6.bias"] = state["6.bias"][grouped]
    state["8.weight"] = state["8.weight"].unflatten(1, (8, 4))[:, grouped].flatten(1)[hidden]
    state["8.bias"] = state["8.bias"][hidden]
    state["10.weight"] = state["10.weight"][:, hidden]
    copy = network(seed=99)
    copy.load_state_dict(state)
    return copy


def test_the_same_function_with_channels_in_another_order_is_at_zero():
    model = network()
    copy = with_channels_in_another_order(model, seed=0)
    images = torch.randn(4, 3, 2, 2)
    torch.testing.assert_close(copy(images), model(images))
    assert nnstd(model, copy).layers == (0,) * 6
    assert nnstd(model, copy, "authors").mean > 0
    assert nnstd(model, network(seed=1)).mean > 0.1


def test_models_state_dicts_files_and_masks_are_the_same(tmp_path):
    def mlp(seed):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 25), nn.ReLU(), nn.Linear(25, 10))
        return model, SET(model, torch.optim.SGD(model.parameters(), lr=0.1), epsilon=2, seed=seed).masks

    (one, masks), (other, other_masks) = mlp(0), mlp(1)
    path = tmp_path / "one.pth"
    torch.save({"state_dict": one.state_dict(), "epoch": 3}, path)
    matrices = [[layer.weight.detach().numpy().T for layer in model[::2]] for model in (one, other)]
    for ties in ("authors", "canonical"):
        expected = nnstd_of_layers(*matrices, ties, fixed_outputs=True)
        assert 0 < expected.mean < 1
        for source in (one, one.state_dict(), masks, path, str(path)):
            assert nnstd(source, other, ties) == expected
            assert nnstd(source, other_masks, ties) == expected
        chosen = nnstd(one, path, ties, layers=["2"], fixed_outputs=False)
        assert chosen.layers == (0,)
    assert (
        nnstd(one, other, layers=["0"], fixed_outputs=False).layers
        == nnstd_of_layers(*[m[:1] for m in matrices]).layers
    )


def test_masks_of_torchs_pruning_are_read():
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3))
    prune.random_unstructured(model[0], "weight", amount=0.5)
    graph = channel_graphs(model.state_dict())["0"]
    assert graph.nnz == 15
    assert np.array_equal(graph.toarray(), (model[0].weight != 0).numpy().T)


@pytest.mark.parametrize("ties", ["authors", "canonical"])
def test_distances_are_those_of_the_pairs(ties):
    models = {f"net {seed}": network(seed) for seed in range(3)}
    found = distances(models, ties)
    assert found.labels == tuple(models)
    assert found.names == ("0", "3", "4", "6", "8", "10")
    for (i, one), (j, other) in itertools.product(enumerate(models.values()), repeat=2):
        expected = nnstd(one, other, ties).layers if i != j else (0,) * 6
        assert found.layers[i, j] == pytest.approx(expected)
        assert found.mean[i, j] == pytest.approx(np.mean(expected))
    assert np.array_equal(found.mean, found.mean.T) == (ties == "canonical")


def test_the_heat_map_shows_the_distances():
    found = distances({f"net {seed}": network(seed) for seed in range(4)})
    axis = distance_figure(found, title="t", block=2).axes[0]
    assert np.array_equal(axis.images[0].get_array(), found.mean)
    assert axis.images[0].get_clim() == (0, 1)
    assert [label.get_text() for label in axis.get_xticklabels()] == list(found.labels)
    assert {text.get_text() for text in axis.texts} == {f"{value:.2f}" for value in found.mean.ravel()}
    assert [line.get_xdata()[0] for line in axis.lines[1::2]] == [1.5]


def linear(*sizes):
    return nn.Sequential(*(nn.Linear(a, b) for a, b in itertools.pairwise(sizes)))


@pytest.mark.parametrize(
    ("a", "b", "options", "error", "message"),
    [
        (linear(2, 3), linear(2, 4), {}, TopologyError, "layer 0 is [2, 3] in a and [2, 4] in b"),
        (linear(2, 3), linear(2, 3, 3), {}, TopologyError, "a has 1 layers and b has 2"),
        (
            linear(2, 3),
            linear(2, 3),
            {"threshold": 9},
            TopologyError,
            "layer 0 of a is empty: [2, 3] with no connection",
        ),
        (linear(2, 3), linear(2, 3), {"threshold": -1}, ConfigError, "threshold is -1: edges are weights with"),
        (linear(2, 3), linear(2, 3), {"layers": ["1"]}, ConfigError, "unknown layer '1'"),
        (nn.ReLU(), linear(2, 3), {}, ConfigError, "a ReLU has no linear or convolutional weights"),
        ({"bias": torch.ones(2)}, linear(2, 3), {}, ConfigError, "a dict has no linear or convolutional weights"),
        (nn.Sequential(nn.Linear(2, 3), nn.Linear(4, 3)), linear(2, 3), {}, TopologyError, "1 reads 4 channels, but 0"),
        (
            {"a.weight": torch.ones(4, 3, 1, 1), "b.weight": torch.ones(4, 2, 1, 1)},
            linear(2, 3),
            {},
            TopologyError,
            "b reads 2 channels, but a before it has 4: NNSTD compares chains of layers",
        ),
        (
            {"weight": torch.tensor([[1.0, float("nan")]])},
            linear(2, 1),
            {},
            WeightsError,
            "weight has values that are NaN",
        ),
        ("nowhere.pth", linear(2, 1), {}, WeightsError, "no weights file at nowhere.pth"),
    ],
)
def test_bad_sources_are_named(a, b, options, error, message):
    with pytest.raises(error, match=re.escape(message)):
        nnstd(a, b, **options)


def test_pairs_that_cannot_be_compared_are_named():
    with pytest.raises(TopologyError, match=r"a = x, b = z: layer 0 is \[2, 3\] in a and \[2, 4\] in b"):
        distances({"x": linear(2, 3), "y": linear(2, 3), "z": linear(2, 4)})
    with pytest.raises(ConfigError, match="a distance is between two networks, got 1"):
        distances({"x": linear(2, 3)})
