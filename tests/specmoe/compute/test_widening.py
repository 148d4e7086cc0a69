"""Narrow weights computed in float32 give bit for bit what the same values stored in float32 give, on every kernel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from specmoe.compute.expert import ExpertTraits, expert_mlp
from specmoe.compute.gate import Gate
from specmoe.compute.layer import ExpertKernels
from specmoe.compute.routed import Routed
from specmoe.compute.table import ROWS, Kernel, KernelTable, candidates, key
from specmoe.compute.threads import available
from specmoe.compute.widening import Widening

NARROW = (torch.bfloat16, torch.float16)
HIDDEN, INNER = 72, 40


def _swiglu(x: torch.Tensor) -> torch.Tensor:
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate) * up


def _expert(dtype: torch.dtype, seed: int, bias: bool) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes: dict[str, tuple[int, ...]] = {"gate_up_proj": (2 * INNER, HIDDEN), "down_proj": (HIDDEN, INNER)}
    if bias:
        shapes |= {"gate_up_proj_bias": (2 * INNER,), "down_proj_bias": (HIDDEN,)}
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


def _wide(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.float() for name, tensor in weights.items()}


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("is_transposed", [False, True])
def test_an_expert_by_each_kernel(is_transposed: bool, bias: bool, dtype: torch.dtype) -> None:
    traits, widening = ExpertTraits(True, is_transposed, _swiglu), Widening()
    weights = _expert(dtype, 0, bias)
    if is_transposed:
        weights = {name: w.t().contiguous() if w.ndim == 2 else w for name, w in weights.items()}
    for rows in (1, 2, 3, 4, 5, 17, 64):
        x = torch.randn(rows, HIDDEN, generator=torch.Generator().manual_seed(rows))
        for kernel in candidates(torch.float32, dtype):
            same: Kernel = "onednn" if kernel == "onednn-widened" else kernel
            expected = expert_mlp(x, _wide(weights), traits, same)
            assert torch.equal(expert_mlp(x, weights, traits, kernel, widening), expected), (kernel, rows)
            assert torch.equal(expert_mlp(x, weights, traits, kernel), expected), (kernel, rows)


@pytest.mark.skipif(not available(), reason="needs Linux on x86-64 or 64-bit Arm")
@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("kernel", ["streaming", "onednn-widened", "torch"])
def test_all_experts_of_a_layer(kernel: Kernel, dtype: torch.dtype) -> None:
    names = [key("experts", torch.float32, stored) for stored in (dtype, torch.float32)]
    table = KernelTable("test", {names[0]: [kernel] * len(ROWS), names[1]: [_same(kernel)] * len(ROWS)})
    hidden = torch.randn(9, HIDDEN, generator=torch.Generator().manual_seed(0))
    order = np.concatenate([np.arange(0, 18, 2), np.arange(1, 18, 2)])
    routed = Routed(hidden, order, {0: (0, 9), 1: (9, 18)}, top_k=2)
    experts = ExpertKernels(ExpertTraits(True, False, _swiglu), Gate("silu"), table, Widening())
    weights = [_expert(dtype, seed, bias=True) for seed in (1, 2)]
    outs = [torch.zeros(18, HIDDEN), torch.zeros(18, HIDDEN)]
    experts.compute(list(enumerate(weights)), routed, outs[0])
    experts.compute(list(enumerate(map(_wide, weights))), routed, outs[1])
    assert outs[0].count_nonzero() == outs[0].numel()
    assert torch.equal(*outs)


def _same(kernel: Kernel) -> Kernel:
    return "onednn" if kernel == "onednn-widened" else kernel


def test_rows_are_never_rounded_to_the_weights_dtype() -> None:
    for dtype in NARROW:
        assert "onednn" not in candidates(torch.float32, dtype)
        x, weights = torch.full((64, HIDDEN), 1 + 2**-12), _expert(dtype, 0, bias=False)  # 1 in either narrow dtype
        traits = ExpertTraits(True, False, _swiglu)
        expected = expert_mlp(x, _wide(weights), traits)
        for kernel in candidates(torch.float32, dtype):
            found = expert_mlp(x, weights, traits, kernel)
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-6 * float(expected.abs().max()))


def test_memory_is_used_again_and_grows_to_the_largest_matrix() -> None:
    widening = Widening()
    large, small = torch.randn(6, 5).bfloat16(), torch.randn(2, 3).bfloat16()
    first = widening(large, torch.float32)
    assert torch.equal(first, large.float())
    second = widening(small, torch.float32)
    assert second.data_ptr() == first.data_ptr()
    assert torch.equal(second, small.float())
    turned = widening(large.t(), torch.float32)
    assert torch.equal(turned, large.t().float())
    assert turned.stride() == large.t().stride(), "a transposed matrix stays one, so that its product is the same"
    with torch.inference_mode():
        assert torch.equal(widening(large, torch.float32), large.float())
    assert torch.equal(widening(small, torch.float32), small.float())
