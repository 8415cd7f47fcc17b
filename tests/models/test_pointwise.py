import copy
import shutil

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.models.touched import touched
from topodet.models import TopoNet, TopoStage, pointwise
from topodet.models.pointwise import convolve
from topodet.topology import complete

LAST = torch.channels_last


def image(*shape, dtype=torch.float64, **options):
    return torch.randn(shape, dtype=dtype).contiguous(memory_format=LAST).requires_grad_(**options)


def results(call, conv, x):
    """The output, first and second derivatives."""
    y = call(conv, x)
    inputs = [x, *conv.parameters()]
    gradients = torch.autograd.grad(y.square().sum(), inputs, create_graph=True)
    return [y, *gradients, *torch.autograd.grad(sum(g.square().sum() for g in gradients), inputs)]


@pytest.fixture
def products(monkeypatch):
    """The shapes of what is multiplied as a matrix."""
    shapes, linear = [], F.linear
    monkeypatch.setattr(F, "linear", lambda x, *rest: shapes.append(tuple(x.shape)) or linear(x, *rest))
    return shapes


@given(
    batch=st.integers(1, 3),
    chs=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    size=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    bias=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_it_is_the_convolution(batch, chs, size, bias, seed):
    torch.manual_seed(seed)
    conv, x = nn.Conv2d(*chs, 1, bias=bias).double(), image(batch, chs[0], *size)
    expected = results(lambda conv, x: conv(x), conv, x)
    actual = results(convolve, conv, x)
    torch.testing.assert_close(actual, expected)
    assert actual[0].is_contiguous(memory_format=LAST) or chs[0] == 1  # which lies as any format


@pytest.mark.parametrize("batch", [1, 2])
def test_a_normalisation_after_it(batch):
    """torch's batch normalisation is wrong at strides that one image may have."""
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8)

    def gradients(dtype, call):
        own_conv, own_norm = copy.deepcopy(conv).to(dtype), copy.deepcopy(norm).to(dtype)
        torch.manual_seed(1)
        x = image(batch, 8, 6, 5, dtype=torch.float32).to(dtype).detach().requires_grad_()
        (own_norm(call(own_conv, x)) * torch.randn(batch, 8, 6, 5).to(dtype)).sum().backward()
        return [x.grad.double(), own_conv.weight.grad.double()]

    torch.testing.assert_close(
        gradients(torch.float32, convolve), gradients(torch.float64, lambda conv, x: conv(x)), rtol=1e-4, atol=1e-4
    )


def test_few_pixels_are_multiplied(products, monkeypatch):
    monkeypatch.setattr(pointwise, "_FEW", 24)
    conv = nn.Conv2d(3, 4, 1)
    for shape in ((2, 3, 3, 4), (1, 3, 5, 5), (4, 3, 2, 3)):
        convolve(conv, image(*shape, dtype=torch.float32))
    assert products == [(2, 3, 4, 3), (4, 2, 3, 3)]
    assert convolve(conv, image(0, 3, 4, 4, dtype=torch.float32)).shape == (0, 4, 4, 4)


def left_alone():
    yield from touched(nn.Conv2d, 3, 3, 1)
    yield "parametrised", nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 3, 1))
    yield "another layer", nn.Identity()
    yield "strided", nn.Conv2d(3, 3, 1, stride=2)
    yield "padded", nn.Conv2d(3, 3, 1, padding=1)
    yield "grouped", nn.Conv2d(3, 3, 1, groups=3)
    yield "of nine pixels", nn.Conv2d(3, 3, 3, padding=1)


@pytest.mark.parametrize(("name", "conv"), left_alone())
def test_what_is_called_as_it_is(name, conv, products):
    x = image(1, 3, 4, 4, dtype=torch.float32)
    torch.testing.assert_close(convolve(conv, x), conv(x))
    assert not products


class Convolve(nn.Module):
    def __init__(self, conv):
        super().__init__()
        self.conv = conv

    def forward(self, x):
        return convolve(self.conv, x)


def test_where_a_product_would_be_another_number(products):
    conv, x = nn.Conv2d(3, 3, 1), image(2, 3, 4, 4, dtype=torch.float32)
    convolve(conv, x.contiguous())
    with torch.autocast("cpu", torch.bfloat16):
        assert convolve(conv, x).dtype == torch.bfloat16
    convolve(copy.deepcopy(conv).bfloat16(), x.bfloat16())
    torch.jit.trace(Convolve(conv), x, check_trace=False)
    torch.func.vmap(lambda x: convolve(conv, x))(x[None])
    convolve(conv, x[0])  # no batch
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        convolve(conv, x)
    finally:
        torch.set_float32_matmul_precision(before)
    assert not products
    convolve(conv, x)
    assert products


@pytest.mark.parametrize("out", ["fits", "contiguous", "of another dtype", "of another shape"])
def test_written_where_it_is_told_to(out, monkeypatch):
    torch.manual_seed(0)
    conv, x = nn.Conv2d(3, 4, 1), image(2, 3, 5, 6, dtype=torch.float32)
    place = {
        "fits": image(2, 4, 5, 6, dtype=torch.float32),
        "contiguous": torch.randn(2, 4, 5, 6),
        "of another dtype": image(2, 4, 5, 6),
        "of another shape": image(2, 4, 6, 5, dtype=torch.float32),
    }[out]
    before = place.clone()
    for few in (2048, 8):
        monkeypatch.setattr(pointwise, "_FEW", few)
        with torch.no_grad():
            y = convolve(conv, x, place)
            torch.testing.assert_close(y, conv(x))
        assert (y.data_ptr() == place.data_ptr()) == (out == "fits")
        assert out == "fits" or torch.equal(place, before)


class TestCompilers:
    """A choice by size must not become a law for other sizes."""

    @pytest.fixture
    def model(self):
        torch.manual_seed(0)
        return TopoNet(nodes=(3, 3), width=4, num_classes=5).eval()

    @pytest.mark.parametrize("strict", [True, False])
    def test_export(self, model, strict):
        x = torch.randn(2, 3, 32, 32).contiguous(memory_format=LAST)
        batch = torch.export.Dim("batch", min=1, max=4096)
        exported = torch.export.export(model, (x,), dynamic_shapes=({0: batch},), strict=strict).module()
        for images in (x, torch.randn(40, 3, 32, 32).contiguous(memory_format=LAST)):
            torch.testing.assert_close(exported(images), model(images), rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize(
        # With the classifier. Of sizes that are left open nothing is multiplied: inductor (torch 2.11) fails there.
        ("dynamic", "counts"),
        [(False, (7, 4)), (None, (7, 1)), (True, (1, 1))],
    )
    def test_compile(self, model, dynamic, counts):
        found = []

        def backend(graph, inputs):
            found.append(sum(node.target in (F.linear, torch._C._nn.linear) for node in graph.graph.nodes))
            return graph

        torch.compiler.reset()
        compiled = torch.compile(model, backend=backend, dynamic=dynamic, fullgraph=True)
        for batch in (2, 3, 40):  # with 40 images the first stage has 2560 pixels
            x = torch.randn(batch, 3, 32, 32)
            torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-4)
        assert (found[0], found[-1]) == counts

    @pytest.mark.skipif(not shutil.which("g++"), reason="inductor needs a C++ compiler")
    def test_training_with_open_sizes(self):
        torch.manual_seed(0)
        torch.compiler.reset()
        stage = TopoStage(2, 2, complete(2))
        compiled = torch.compile(stage, dynamic=True, fullgraph=True)
        for shape in ((2, 2, 9, 7), (3, 2, 12, 8)):
            x = torch.randn(shape, requires_grad=True)
            gradients = [torch.autograd.grad(run(x).square().mean(), x)[0] for run in (compiled, stage)]
            torch.testing.assert_close(*gradients)
