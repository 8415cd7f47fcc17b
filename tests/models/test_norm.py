import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.models.touched import touched
from topodet.models.norm import normalise

LAYOUTS = (torch.contiguous_format, torch.channels_last)


def image(*shape, layout=torch.contiguous_format, **kwargs):
    return torch.randn(shape, dtype=torch.float64).to(memory_format=layout).requires_grad_(**kwargs)


def trained(norm):
    """A normalisation that does something in evaluation too."""
    for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        if tensor is not None:
            nn.init.uniform_(tensor, 0.5, 2)
    return norm.double()


def results(norm, call, x):
    """The output, the gradients and what the normalisation remembers."""
    y = call(norm, x)
    inputs = [x, *(p for p in norm.parameters() if p.requires_grad)]
    gradients = torch.autograd.grad(y.square().sum(), inputs, create_graph=True)
    again = torch.autograd.grad(sum(g.square().sum() for g in gradients), inputs)
    return [y, *gradients, *again, *norm.buffers()]


@given(
    affine=st.booleans(),
    frozen=st.booleans(),
    train=st.booleans(),
    momentum=st.sampled_from([0.1, 0.0, 1.0]),
    layout=st.sampled_from(LAYOUTS),
    seed=st.integers(0, 10**6),
)
def test_the_same_as_torchs_own(affine, frozen, train, momentum, layout, seed):
    torch.manual_seed(seed)
    norm = trained(nn.BatchNorm2d(3, momentum=momentum, affine=affine)).train(train).requires_grad_(not frozen)
    x, out = image(2, 3, 4, 5, layout=layout), torch.empty_like(image(2, 3, 4, 5, layout=layout))
    expected = results(copy.deepcopy(norm), lambda norm, x: norm(x), x)
    found = results(norm, lambda norm, x: normalise(norm, x, out.detach()), x)
    torch.testing.assert_close(found, expected)
    assert found[0].data_ptr() == out.data_ptr()
    with torch.no_grad():
        y = normalise(norm, x, out.detach())
        torch.testing.assert_close(y, norm(x))
    assert y.data_ptr() == out.data_ptr()
    assert not y.requires_grad


@pytest.mark.parametrize("train", [True, False])
def test_gradients_in_float64(train):
    torch.manual_seed(0)
    norm = trained(nn.BatchNorm2d(2)).train(train)
    x = image(2, 2, 3, 2, requires_grad=True)

    def run(x, weight, bias):
        twin = copy.deepcopy(norm)  # which has statistics of its own
        twin._parameters.update(weight=weight, bias=bias)
        return normalise(twin, x, torch.empty_like(x))

    assert torch.autograd.gradcheck(run, (x, norm.weight, norm.bias))
    assert torch.autograd.gradgradcheck(run, (x, norm.weight, norm.bias))


def left_alone():
    yield "group", nn.GroupNorm(1, 3)
    yield "identity", nn.Identity()
    yield "no statistics", nn.BatchNorm2d(3, track_running_stats=False)
    yield "averaged", nn.BatchNorm2d(3, momentum=None)
    yield from touched(nn.BatchNorm2d, 3)


@pytest.mark.parametrize(("name", "norm"), left_alone())
def test_what_is_called_as_it_is(name, norm):
    norm = norm.double()
    x = image(2, 3, 4, 4)
    out = torch.full_like(x, torch.nan)
    torch.testing.assert_close(normalise(norm, x, out), norm(x))
    assert out.isnan().all()


def test_a_hook_on_all_modules_is_called():
    norm, x = nn.BatchNorm2d(3).double(), image(2, 3, 4, 4)
    handle = nn.modules.module.register_module_forward_hook(lambda module, inputs, output: output + 1)
    try:
        torch.testing.assert_close(normalise(norm, x, torch.empty_like(x)), norm(x))
    finally:
        handle.remove()


@pytest.mark.parametrize(
    "out",
    [
        None,
        torch.empty(2, 3, 4, 4),
        torch.empty(2, 3, 4, 5, dtype=torch.float64),
        torch.empty(2, 3, 4, 4, dtype=torch.float64).to(memory_format=torch.channels_last),
        torch.empty(2, 3, 4, 4, dtype=torch.float64, device="meta"),
    ],
)
def test_no_place_for_it(out):
    norm, x = nn.BatchNorm2d(3).double(), image(2, 3, 4, 4)
    y = normalise(norm, x, out)
    torch.testing.assert_close(y, norm(x))
    assert out is None or y.data_ptr() != out.data_ptr()


def test_one_value_a_channel_is_an_error_as_ever():
    x = image(1, 3, 1, 1)
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        normalise(nn.BatchNorm2d(3).double(), x, torch.empty_like(x))
