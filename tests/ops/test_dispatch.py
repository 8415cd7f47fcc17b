from contextlib import nullcontext

import pytest
import torch
from torch import nn

from tests.stages import make_stage
from topodet.errors import ConfigError
from topodet.ops import kernel, use_kernel
from topodet.topology import complete


def test_the_choice_by_circumstance():
    x = torch.zeros(1)
    assert kernel(x) == kernel(x.double()) == kernel(x.bfloat16()) == "fused"
    assert kernel(nn.Parameter(x)) == "fused"
    with torch.autocast("cpu"):
        assert kernel(x) == "fused"
    assert kernel(x.to("meta")) == "torch"
    assert torch.vmap(lambda x: x + (kernel(x) == "plain"))(x) == 1
    with torch.autograd.forward_ad.dual_level():
        assert kernel(x) == "plain"


@pytest.mark.parametrize(
    ("forced", "found", "dtype"),
    [
        (None, "plain", torch.float32),
        (None, "torch", torch.bfloat16),
        ("fused", "fused", torch.float32),
        ("torch", "torch", torch.float32),
        ("plain", "plain", torch.bfloat16),
    ],
)
def test_the_choice_under_a_compiler(forced, found, dtype):
    def chosen(x):
        return x + (kernel(x) == found)

    torch.compiler.reset()
    with use_kernel(forced) if forced else nullcontext():
        assert torch.compile(chosen, backend="eager", fullgraph=True)(torch.zeros(1, dtype=dtype)) == 1


def test_the_choice_by_name():
    with use_kernel("plain"):
        assert kernel(torch.zeros(1)) == "plain"
        with use_kernel("fused"):
            assert kernel(torch.zeros(1)) == "fused"
            with torch.autograd.forward_ad.dual_level():
                assert kernel(torch.zeros(1)) == "plain"
    assert kernel(torch.zeros(1)) == "fused"
    with pytest.raises(ConfigError, match="unknown kernel 'fuse'. Did you mean 'fused'"), use_kernel("fuse"):
        pass


def test_tracing_records_ordinary_operators():
    stage = make_stage(complete(4)).eval()
    x = torch.randn(1, 2, 6, 6, dtype=torch.float64)
    with torch.no_grad():
        traced = torch.jit.trace(stage, x)
        assert "topodet::" not in str(traced.inlined_graph)
        torch.testing.assert_close(traced(x), stage(x))


@pytest.mark.parametrize("gradients", [True, False])
def test_export_records_ordinary_operators(gradients):
    stage = make_stage(complete(4)).eval()
    x = torch.randn(1, 2, 6, 6, dtype=torch.float64)
    with nullcontext() if gradients else torch.no_grad():
        program = torch.export.export(stage, (x,), strict=False)
    assert "topodet" not in str(program.graph)
    torch.testing.assert_close(program.module()(x), stage(x))


def test_functional_transforms():
    stage = make_stage(complete(4)).eval()
    x = torch.randn(1, 2, 6, 6, dtype=torch.float64)

    def loss(alpha):
        return torch.func.functional_call(stage, {"wiring.alpha": alpha}, (x,)).square().sum()

    alpha = stage.wiring.alpha.detach()
    loss(stage.wiring.alpha).backward()
    torch.testing.assert_close(torch.func.grad(loss)(alpha), stage.wiring.alpha.grad)
    _, slope = torch.func.jvp(loss, (alpha,), (torch.ones_like(alpha),))
    torch.testing.assert_close(slope, stage.wiring.alpha.grad.sum())
