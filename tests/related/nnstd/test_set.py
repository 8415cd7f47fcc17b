import copy
import io
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from topodet.errors import ConfigError, WeightsError
from topodet.related.nnstd.set import SET

OPTIMIZERS = {
    "SGD": {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
    "Adam": {"lr": 0.01, "amsgrad": True},
    "AdamW": {"lr": 0.01, "weight_decay": 0.1},
    "NAdam": {"lr": 0.01},
    "RAdam": {"lr": 0.01},
    "Adamax": {"lr": 0.01},
    "Adagrad": {"lr": 0.1},
    "Adadelta": {},
    "RMSprop": {"lr": 0.01, "momentum": 0.5, "centered": True},
    "Rprop": {"lr": 0.01},
    "ASGD": {"lr": 0.1},
}


def network():
    return nn.Sequential(
        nn.Conv2d(2, 12, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(12, 16, 3, groups=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 16, 20),
        nn.ReLU(),
        nn.Linear(20, 3),
    )


def sparse(epsilon=1.5, optimizer="SGD", model=None, **options):
    model = model or network()
    made = getattr(torch.optim, optimizer)(model.parameters(), **OPTIMIZERS[optimizer])
    return model, made, SET(model, made, epsilon=epsilon, **options)


def batch(k):
    generator = torch.Generator().manual_seed(k)
    return torch.randn(8, 2, 4, 4, generator=generator), torch.randint(3, (8,), generator=generator)


def train(model, optimizer, steps, start=0):
    for k in range(start, start + steps):
        images, classes = batch(k)
        optimizer.zero_grad()
        F.cross_entropy(model(images), classes).backward()
        optimizer.step()


def absent(evolution, model):
    """The weights of absent links, of all sparse layers."""
    parameters = dict(model.named_parameters())
    return torch.cat([parameters[name][~mask.expand_as(parameters[name])] for name, mask in evolution.masks.items()])


def test_first_links_are_an_erdos_renyi_graph():
    model = nn.Sequential(nn.Conv2d(40, 60, 3), nn.Conv2d(60, 60, 3, groups=2), nn.Linear(300, 200), nn.Linear(200, 10))
    _, _, evolution = sparse(epsilon=8, model=model)
    # The last layer's p = 8 * 210 / 2000 is below 1 as well.
    sizes = {"0": (40, 60, 1), "1": (30, 30, 2), "2": (300, 200, 1), "3": (200, 10, 1)}
    for name, (n_in, n_out, groups) in sizes.items():
        p = 8 * (n_in + n_out) / (n_in * n_out)
        count = groups * n_in * n_out
        assert abs(evolution.links[f"{name}.weight"] - p * count) < 5 * math.sqrt(count * p * (1 - p))
    assert (absent(evolution, model) == 0).all()
    assert all(mask.shape[2:] == torch.Size([1] * (mask.ndim - 2)) for mask in evolution.masks.values())
    for name, mask in evolution.masks.items():
        weight = model.get_parameter(name)
        assert (weight[mask.expand_as(weight)] != 0).all()


def test_small_layers_stay_dense():
    model = network()
    before = model[7].weight.clone()
    _, _, evolution = sparse(epsilon=3, model=model)
    assert list(evolution.masks) == ["2.weight", "5.weight"]  # p of the first is 3 * 14 / 24, of the last 3 * 23 / 60
    assert torch.equal(model[7].weight, before)


def test_first_weights_pass_on_the_variance_of_a_dense_layer():
    model = nn.Sequential(nn.Linear(400, 500, bias=False), nn.Conv2d(60, 80, 3, bias=False))
    dense = copy.deepcopy(model)
    _, _, evolution = sparse(epsilon=10, model=model)
    for name, inputs in (("0", torch.randn(200, 400)), ("1", torch.randn(20, 60, 6, 6))):
        layers = model.get_submodule(name), dense.get_submodule(name)
        sums, sums_when_dense = (layer(inputs).detach() for layer in layers)
        assert 0.9 < float(sums.std() / sums_when_dense.std()) < 1.1
        plain = copy.deepcopy(dense)
        sparse(epsilon=10, model=plain, rescale=False)
        mask = evolution.masks[f"{name}.weight"]
        assert torch.equal(plain.get_submodule(name).weight, layers[1].weight * mask)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_is_that_of_a_network_without_the_absent_links(name):
    """The same as if the forward pass multiplied weights and masks, and autograd saw to the gradient."""
    model, optimizer, evolution = sparse(optimizer=name, zeta=0.3)
    twin = copy.deepcopy(model)
    twins_optimizer = getattr(torch.optim, name)(twin.parameters(), **OPTIMIZERS[name])
    train(model, optimizer, 4)
    for k in range(4):
        images, classes = batch(k)
        masked = {key: twin.get_parameter(key) * mask for key, mask in evolution.masks.items()}
        loss = F.cross_entropy(torch.func.functional_call(twin, masked, (images,)), classes)
        twins_optimizer.zero_grad()
        loss.backward()
        twins_optimizer.step()
    for (key, weight), other in zip(model.named_parameters(), twin.parameters()):
        torch.testing.assert_close(weight, other, rtol=0, atol=0, msg=key)
    assert (absent(evolution, model) == 0).all()
    evolution.evolve()
    train(model, optimizer, 2)
    assert (absent(evolution, model) == 0).all()


def brute_force_removal(weight, mask, zeta):
    """Which links go, by sorting lists; [n_out, n_in] positions."""
    positive, negative = [], []
    for i in range(mask.shape[0]):
        for j in range(mask.shape[1]):
            if mask[i, j]:
                kernel = weight[i, j].flatten().tolist()
                size = sum(map(abs, kernel))
                (negative if sum(kernel) < 0 else positive).append((size, i, j))
    gone = []
    for links in (positive, negative):
        count = math.floor(round(zeta * len(links), 6))
        gone += [place[1:] for place in sorted(links)[:count]]
    return set(gone)


@given(st.integers(0, 2**31), st.sampled_from([0.0, 0.1, 0.29, 0.3, 0.5, 0.9]), st.sampled_from(["SGD", "AdamW"]))
def test_evolution_against_brute_force(seed, zeta, optimizer):
    torch.manual_seed(seed)
    model, made, evolution = sparse(optimizer=optimizer, zeta=zeta, seed=seed)
    train(model, made, 1)
    with torch.no_grad():
        for name in evolution.masks:  # steps of a half, so that values repeat and some are 0; exact in any order
            weight = model.get_parameter(name)
            weight.copy_((weight * 8 / weight.std()).round() / 2)
    weights = {name: model.get_parameter(name).detach().clone() for name in evolution.masks}
    masks = {name: mask.clone() for name, mask in evolution.masks.items()}
    links = evolution.links
    moved = evolution.evolve()
    assert evolution.links == links
    for name, mask in evolution.masks.items():
        gone = brute_force_removal(weights[name], masks[name].flatten(1), zeta)
        assert moved[name] == len(gone)
        kept = masks[name].clone()
        for i, j in gone:
            kept[i, j] = False
        assert mask[kept].all()  # what was not weakest stays
        weight = model.get_parameter(name)
        stays = kept.expand_as(weight)
        assert torch.equal(weight, weights[name] * stays)  # and keeps its weight; all else is 0
        for key, state in made.state[weight].items():
            if key in ("momentum_buffer", "exp_avg", "exp_avg_sq"):
                assert (state[~stays] == 0).all()
                assert state[stays].abs().sum() > 0


def test_new_links_are_spread_evenly_over_the_empty_places():
    model = nn.Linear(40, 50, bias=False)
    _, _, evolution = sparse(epsilon=8, zeta=0.5, model=nn.Sequential(model))
    (mask,) = evolution.masks.values()
    links, hits, chances = int(mask.sum()), torch.zeros(50, 40), torch.zeros(50, 40)
    for _ in range(100):
        with torch.no_grad():
            model.weight.copy_(torch.rand(50, 40) * mask)
        gone = brute_force_removal(model.weight.detach(), mask, 0.5)
        kept = mask.clone()
        for place in gone:
            kept[place] = False
        evolution.evolve()
        hits += mask & ~kept
        chances += (~kept) * len(gone) / (2000 - links + len(gone))
    deviation = (hits - chances) / chances.sqrt()
    assert abs(float(deviation.mean())) < 0.1
    assert 0.8 < float(deviation.std()) < 1.1


def test_the_function_changes_only_by_what_is_removed():
    model, optimizer, evolution = sparse()
    train(model, optimizer, 2)
    images, _ = batch(0)
    before = {name: mask.clone() for name, mask in evolution.masks.items()}
    plain = copy.deepcopy(model)
    evolution.evolve()
    with torch.no_grad():
        for name, mask in evolution.masks.items():
            weight = model.get_parameter(name)
            gone = before[name].expand_as(weight) & (weight == 0)
            plain.get_parameter(name)[gone] = 0
            assert (before[name] & ~mask).any()
    assert torch.equal(model(images), plain(images))


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
def test_a_resumed_training_is_the_same(optimizer):
    def epochs(model, made, evolution, first, last):
        for epoch in range(first, last):
            if epoch:
                evolution.evolve()
            train(model, made, 3, start=3 * epoch)

    straight = sparse(optimizer=optimizer, seed=5)
    fresh = copy.deepcopy(network().state_dict())
    epochs(*straight, 0, 2)
    file = io.BytesIO()
    torch.save([part.state_dict() for part in straight], file)
    epochs(*straight, 2, 4)
    resumed = sparse(optimizer=optimizer, seed=6)
    resumed[0].load_state_dict(fresh)
    file.seek(0)
    for part, state in zip(resumed, torch.load(file, weights_only=True)):
        part.load_state_dict(state)
    epochs(*resumed, 2, 4)
    for one, other in zip(straight[0].parameters(), resumed[0].parameters()):
        assert torch.equal(one, other)
    one, other = (part.state_dict() for part in (straight[2], resumed[2]))
    assert all(torch.equal(one["masks"][name], other["masks"][name]) for name in one["masks"])
    assert torch.equal(one["generator"], other["generator"])
    assert one["evolutions"] == other["evolutions"] == 3


def test_resuming_in_the_wrong_order_is_named():
    model, optimizer, evolution = sparse(seed=1)
    train(model, optimizer, 2)
    saved, state = copy.deepcopy(model.state_dict()), evolution.state_dict()
    late = network()
    late.load_state_dict(saved)
    with pytest.raises(WeightsError, match=r"create SET first, then load the states of the model"):
        sparse(seed=2, model=late)[2].load_state_dict(state)  # its own links have cut those that were loaded
    with pytest.raises(WeightsError, match=r"create SET first"):
        sparse(seed=2)[2].load_state_dict(state)  # the model has not loaded
    with pytest.raises(WeightsError, match=r"the state is of sparse layers .* resume the same network"):
        sparse(epsilon=3)[2].load_state_dict(state)


def test_clipping_sees_existing_links_only():
    model, _, evolution = sparse()
    images, classes = batch(0)
    F.cross_entropy(model(images), classes).backward()
    for name, mask in evolution.masks.items():
        gradient = model.get_parameter(name).grad
        assert (gradient[~mask.expand_as(gradient)] == 0).all()
        assert gradient.abs().sum() > 0


def test_closures_and_scaled_overflows_leave_absent_links_at_zero():
    model, optimizer, evolution = sparse()
    images, classes = batch(0)

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), classes)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert (absent(evolution, model) == 0).all()
    weight = model[5].weight
    optimizer.zero_grad()
    (weight * torch.full_like(weight, math.inf)).sum().backward()
    assert (weight.grad[~evolution.masks["5.weight"]] == 0).all()


def test_an_optimiser_that_adds_noise_is_held():
    class Noisy(torch.optim.SGD):
        def step(self, closure=None):
            super().step(closure)
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.data.add_(torch.randn_like(parameter))

    model = network()
    optimizer = Noisy(model.parameters(), lr=0.1)
    evolution = SET(model, optimizer, epsilon=1.5)
    train(model, optimizer, 1)
    assert (absent(evolution, model) == 0).all()
    evolution.remove()
    train(model, optimizer, 1)
    assert (absent(evolution, model) != 0).all()


def test_compiled_models_are_trained_alike():
    eager = sparse(seed=3)
    torch.manual_seed(0)
    plain = network()
    plain.load_state_dict(eager[0].state_dict())
    model, optimizer, evolution = sparse(seed=3, model=plain, rescale=False)
    compiled = torch.compile(model, backend="aot_eager")
    for made, forward in ((eager, eager[0]), ((model, optimizer, evolution), compiled)):
        train(forward, made[1], 2)
        made[2].evolve()
        train(forward, made[1], 2, start=2)
    for one, other in zip(eager[0].parameters(), model.parameters()):
        torch.testing.assert_close(one, other)
    assert (absent(evolution, model) == 0).all()


def test_a_diverged_training_is_named():
    model, _, evolution = sparse()
    with torch.no_grad():
        model[5].weight[0, 0] = math.nan
    with pytest.raises(WeightsError, match=r"5.weight has values that are NaN or infinite"):
        evolution.evolve()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epsilon": 0}, "epsilon is 0: give a positive number"),
        ({"epsilon": math.inf}, "epsilon is inf"),
        ({"zeta": 1}, "zeta is 1: give the share of links to move"),
        ({"zeta": -0.1}, "zeta is -0.1"),
        ({"epsilon": 1000}, r"epsilon=1000 leaves every layer dense .* in 0, 2, 5, 7\)"),
        ({"epsilon": 1e-9}, r"epsilon=1e-09 left 0 without a link"),
        ({"layers": ["5", "6"]}, r"unknown linear or convolutional layer '6'"),
        ({"layers": []}, r"leaves every layer dense .* in none at all"),
    ],
)
def test_bad_settings_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        sparse(**options)


def test_wrong_optimisers_are_named():
    model = network()
    with pytest.raises(ConfigError, match=r"the optimizer does not train 2.weight, 5.weight"):
        SET(model, torch.optim.SGD(model[0].parameters(), lr=0.1), epsilon=1.5)
    with pytest.raises(ConfigError, match="LBFGS keeps a joint history of all weights"):
        SET(model, torch.optim.LBFGS(model.parameters()), epsilon=1.5)
