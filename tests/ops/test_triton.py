import os
import re
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.stages import edge_by_edge, gradients, make_stage
from topodet.ops import dispatch, kernel, use_kernel, weighted_sum
from topodet.topology import complete

triton = pytest.importorskip("triton", reason="Triton is not installed: torch brings it along on Linux")

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_under_the_interpreter():
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests/ops/interpreted_triton.py"]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\d+ passed", done.stdout)


@pytest.mark.skipif("TRITON_INTERPRET" in os.environ, reason="TRITON_INTERPRET is set: nothing is compiled")
class TestCompiler:
    """Triton compiles for GPUs that are not there; only the launch is left out."""

    @pytest.fixture
    def compiled(self, monkeypatch, tmp_path):
        """A list to which each call adds what it would launch, on the GPU that `use` names."""
        from triton.backends.compiler import GPUTarget
        from triton.runtime import driver

        from topodet.ops import triton as topodet_triton

        class Compiled(list):
            def use(self, *target):
                stands_in = SimpleNamespace(
                    get_current_device=lambda: target,
                    get_current_stream=lambda device: 0,
                    get_current_target=lambda: GPUTarget(*target),
                    get_active_torch_device=lambda: torch.device("cpu"),
                )
                monkeypatch.setattr(driver, "_active", stands_in)

            def __getitem__(self, grid):
                return lambda *args, **options: self.append(kernel.warmup(*args, grid=grid, **options))

        kernel, found = topodet_triton._kernel, Compiled()
        monkeypatch.setattr(topodet_triton, "_kernel", found)
        monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
        found.use("cuda", 80, 32)
        return found

    @pytest.mark.parametrize(
        ("target", "language", "wide_loads"),
        [
            (("cuda", 75, 32), "ptx", r"ld\.global\.v4\.b32"),
            (("cuda", 90, 32), "ptx", r"ld\.global\.v4\.b32"),
            (("cuda", 120, 32), "ptx", r"ld\.global\.v4\.b32"),
            (("hip", "gfx942", 64), "amdgcn", r"load_dwordx[24]"),
        ],
    )
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_reads_many_bytes_at_once(self, compiled, target, language, wide_loads, dtype):
        from topodet.ops.triton import add_up, add_up_and_dot

        compiled.use(*target)
        terms, weights = [torch.ones(2, 16, 3, 3, dtype=dtype) for _ in range(4)], torch.ones(4)
        add_up(terms, weights)
        add_up_and_dot(terms, weights, terms[0])
        for made in list(compiled):
            assert len(re.findall(wide_loads, made.asm[language])) >= len(terms)
            assert not re.search("bar.sync|s_barrier", made.asm[language])

    def test_few_kernels_for_many_numbers_of_terms(self, compiled):
        """Not one for each number of terms, nor for each place where a slice of the weights may begin."""
        from topodet.ops.triton import add_up

        weights = torch.ones(64)
        for number in (1, 2, 3, 4, 5, 6, 7, 8):
            for first in (0, 1, number):
                add_up([torch.ones(32)] * number, weights[first : first + number])
        assert len({made.hash for made in list(compiled)}) == 4

    def test_odd_addresses_are_copied_and_odd_sizes_are_compiled(self, compiled):
        from topodet.ops.triton import add_up

        add_up([torch.ones(33)[1:], torch.ones(32)], torch.ones(2))
        add_up([torch.ones(32)] * 2, torch.ones(2))
        add_up([torch.ones(31)] * 2, torch.ones(2))
        aligned, also, odd = list(compiled)
        assert aligned.hash == also.hash != odd.hash


class TestChoice:
    @pytest.fixture(autouse=True)
    def untried(self, monkeypatch):
        monkeypatch.setattr(dispatch, "_tried", {})
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)

    @pytest.fixture
    def on_gpu(self, monkeypatch):
        """What `kernel` wants to know of a tensor on a GPU."""
        monkeypatch.setattr(dispatch, "is_traced", lambda x: False)
        return SimpleNamespace(device=torch.device("cuda", 0), dtype=torch.bfloat16)

    @pytest.mark.parametrize(("works", "expected"), [(True, "triton"), (False, "torch")])
    def test_on_a_gpu(self, on_gpu, works, expected):
        dispatch._tried[on_gpu.device, on_gpu.dtype] = works
        assert kernel(on_gpu) == expected
        for forced, found in {
            "fused": expected,
            "triton": expected,
            "torch": "torch",
            "plain": "plain",
        }.items():
            with use_kernel(forced):
                assert kernel(on_gpu) == found

    def test_elsewhere(self):
        with use_kernel("triton"):
            assert kernel(torch.zeros(1)) == "fused"
            assert kernel(torch.zeros(1, device="meta")) == "torch"

    def test_a_compiler_takes_the_operator_without_trying_it(self, on_gpu, monkeypatch):
        monkeypatch.setattr(torch.compiler, "is_dynamo_compiling", lambda: True)
        assert kernel(on_gpu) == "triton"
        assert not dispatch._tried

    def test_while_a_graph_is_captured_nothing_is_tried(self, on_gpu, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        assert kernel(on_gpu) == "torch"
        assert not dispatch._tried

    def test_what_does_not_work_is_said_once_and_replaced(self, monkeypatch):
        def check(device, dtype):
            raise RuntimeError("no compiler")

        monkeypatch.setattr("topodet.ops.triton.check", check)
        terms, weights = [torch.ones(2, 3), torch.full((2, 3), 2.0)], torch.tensor([1.0, 3.0])
        with pytest.warns(UserWarning, match=r"does not work for torch.float32 on cpu \(RuntimeError: no compiler\)"):
            total = weighted_sum._add_up_on_gpu(terms, weights)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            again, products = weighted_sum._add_up_and_dot_on_gpu(terms, weights, terms[1])
        assert torch.equal(total, torch.full((2, 3), 7.0))
        assert torch.equal(again, total)
        assert torch.equal(products, torch.tensor([12.0, 24.0]))

    def test_without_triton(self, monkeypatch):
        monkeypatch.delitem(sys.modules, "topodet.ops.triton", raising=False)
        monkeypatch.setitem(sys.modules, "triton", None)
        with pytest.warns(UserWarning, match="ModuleNotFoundError"):
            assert weighted_sum._add_up_on_gpu([torch.ones(2)], torch.ones(1)).tolist() == [1, 1]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
class TestOnAGPU:
    @pytest.fixture(autouse=True)
    def works(self):
        """A kernel that is replaced by torch's operators would pass all of this."""
        dtypes = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
        assert [kernel(torch.ones(1, device="cuda", dtype=dtype)) for dtype in dtypes] == ["triton"] * 4

    @pytest.mark.parametrize("nodes", [6, 36])
    @pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
    def test_a_stage_is_eq_1_with_autograds_gradients(self, nodes, layout):
        stage = make_stage(complete(nodes)).to("cuda", memory_format=layout)
        with torch.no_grad():
            stage.wiring.alpha.div_(nodes)[::3] = 0
        x = torch.randn(2, 2, 10, 6, dtype=torch.float64, device="cuda").to(memory_format=layout)
        found, expected = (
            gradients(stage, stage, x),
            gradients(stage, lambda x: edge_by_edge(stage, x), x),
        )
        torch.testing.assert_close(found, expected)

    def test_gradients_in_float64(self):
        stage = make_stage(complete(4)).eval().cuda()
        image = torch.randn(1, 2, 5, 5, dtype=torch.float64, device="cuda", requires_grad=True)

        def run(image, alpha):
            return torch.func.functional_call(stage, {"wiring.alpha": alpha}, (image,))

        assert torch.autograd.gradcheck(run, (image, stage.wiring.alpha))

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_reduced_precision_in_channels_last(self, dtype):
        """Forward and backward against torch's own operators, whose sums are float32 as well."""
        number, shape = 40, (4, 24, 17, 13)
        terms = [torch.randn(shape, device="cuda", dtype=dtype) for _ in range(number)]
        terms = [term.to(memory_format=torch.channels_last) for term in terms]
        weights = torch.randn(number, device="cuda")
        total, products = torch.ops.topodet.add_up_and_dot(terms, weights, terms[0])
        expected, exact = weighted_sum._weighted_sum_and_dot(
            [term.double() for term in terms], weights.double(), terms[0].double()
        )
        assert total.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(torch.ops.topodet.add_up(terms, weights), total)
        torch.testing.assert_close(total, expected.to(dtype))
        torch.testing.assert_close(products.double(), exact, rtol=1e-4, atol=1e-2)
        again = torch.ops.topodet.add_up_and_dot(terms, weights, terms[0])
        assert torch.equal(again[0], total)
        assert torch.equal(again[1], products)

    def test_compiled_gradients(self):
        stage = make_stage(complete(5), dtype=torch.float32).cuda().to(memory_format=torch.channels_last)
        x = torch.randn(2, 2, 6, 6, device="cuda")
        torch.compiler.reset()
        found = gradients(stage, torch.compile(stage, fullgraph=True), x)
        torch.testing.assert_close(found, gradients(stage, stage, x), rtol=1e-3, atol=1e-4)

    def test_a_cuda_graph_follows_its_inputs_and_weights(self):
        stage = make_stage(complete(6)).eval().cuda()
        x = torch.randn(2, 2, 6, 6, dtype=torch.float64, device="cuda")
        with torch.no_grad():
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                stage(x)
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                y = stage(x)
            x.copy_(torch.randn_like(x))
            stage.wiring.alpha.mul_(-0.5)
            graph.replay()
            torch.testing.assert_close(y, stage(x))

    def test_nothing_waits_for_the_gpu(self):
        terms = [torch.ones(64, device="cuda") for _ in range(40)]
        weights = torch.ones(40, device="cuda")
        torch.ops.topodet.add_up_and_dot(terms, weights, terms[0])  # compiled
        torch.cuda.set_sync_debug_mode("error")
        try:
            torch.ops.topodet.add_up_and_dot(terms, weights, terms[0])
        finally:
            torch.cuda.set_sync_debug_mode("default")

    def test_more_elements_than_int32_counts(self):
        size = 2**31 + 24
        if torch.cuda.mem_get_info()[0] < 5 * size:  # two tensors of float16, and what the sum is computed in
            # Nothing smaller has more than 2**31 elements; a GPU that is small or busy has no room for them.
            pytest.skip("needs 11 GB of a GPU's memory")
        term = torch.zeros(size, device="cuda", dtype=torch.float16)
        term[-3:] = 2
        total, products = torch.ops.topodet.add_up_and_dot([term], torch.full((1,), 3.0, device="cuda"), term)
        assert total[-5:].tolist() == [0, 0, 6, 6, 6]
        assert products.tolist() == [12]
