"""Low-bit weights survive packing, and every kernel on them gives what the unpacked weights give."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from specmoe.compute.codes import GROUP, SCALES, groups, pack, unpack, widened, widened_expert, zero_of
from specmoe.compute.expert import ExpertTraits, expert_mlp
from specmoe.compute.gate import Gate
from specmoe.compute.packed_layer import PACKED_ROWS, PackedKernels
from specmoe.compute.routed import Routed
from specmoe.compute.table import TORCH, rule
from specmoe.compute.threads import available

BITS = (2, 3, 4, 8)
Tensors = dict[str, torch.Tensor]


@given(bits=st.sampled_from(BITS), seed=st.integers(0, 99), rows=st.integers(1, 9))
def test_codes_come_back_from_their_bytes(bits: int, seed: int, rows: int) -> None:
    codes = torch.randint(0, 2**bits, (rows, GROUP), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    packed = pack(codes, bits)
    assert packed.shape == (rows, 4 * bits)
    assert torch.equal(unpack(packed, bits), codes)


@pytest.mark.parametrize("bits", BITS)
def test_a_weight_is_its_code_less_zero_times_the_scale_of_its_group(bits: int) -> None:
    codes = (torch.arange(64) % 2**bits).to(torch.uint8).view(2, GROUP)
    scales = torch.tensor([[0.5, 4.0]], dtype=torch.bfloat16)
    expected = (codes.float() - zero_of(bits)) * scales.float().t()
    assert torch.equal(widened(pack(codes, bits).view(1, -1), scales, 50), expected.view(1, 64)[:, :50])


def _copy(bits: int, hidden: int, inner: int, has_gate: bool, bias: bool, seed: int) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    first, rows = ("gate_up_proj", 2 * inner) if has_gate else ("up_proj", inner)
    found: Tensors = {}
    for name, out, width in ((first, rows, hidden), ("down_proj", hidden, inner)):
        codes = torch.randint(0, 2**bits, (out * groups(width), GROUP), dtype=torch.uint8, generator=generator)
        found[name] = pack(codes, bits).view(out, -1)
        scales = torch.rand(out, groups(width), generator=generator) / 2**bits / width**0.5
        found[f"{name}{SCALES}"] = scales.to(torch.bfloat16)
        if bias:
            found[f"{name}_bias"] = torch.randn(out, generator=generator)
    return found


def _gated(act: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    def apply(x: torch.Tensor) -> torch.Tensor:
        gate, up = x.chunk(2, dim=-1)
        return act(gate) * up

    return apply


def _interleaved(x: torch.Tensor) -> torch.Tensor:
    gate, up = x[..., ::2].clamp(max=0.5), x[..., 1::2].clamp(-0.5, 0.5)
    return (up + 1) * gate * torch.sigmoid(gate * 1.702)


def _compare(
    bits: int,
    shape: tuple[int, int],
    traits: ExpertTraits,
    gate: Gate | None,
    tokens: int,
    *,
    bias: bool = False,
    dtype: torch.dtype = torch.float32,
    table: Any = None,
) -> None:
    """All copies of a layer in one call, against each from its unpacked weights by torch."""
    hidden, inner = shape
    copies = [_copy(bits, hidden, inner, traits.has_gate, bias, seed) for seed in range(3)]
    generator = torch.Generator().manual_seed(tokens)
    x = torch.randn(tokens, hidden, generator=generator).to(dtype)
    picks = torch.rand(tokens, 3, generator=generator).argsort(dim=1)[:, :2]
    routed, out = Routed.of(x, picks.numpy()), x.new_zeros(picks.numel(), hidden)
    PackedKernels(traits, gate, table or rule(), {}).compute(list(enumerate(copies)), routed, out)
    for expert, (start, end) in routed.bounds.items():
        rows = routed.rows(start, end)
        expected = expert_mlp(x[rows // 2].float(), widened_expert(copies[expert], hidden), traits)
        atol = (2e-2 if dtype == torch.bfloat16 else 3e-6) * max(1e-3, float(expected.abs().max()))
        torch.testing.assert_close(out[rows].float(), expected, rtol=0, atol=atol)


SWIGLU = ExpertTraits(True, False, _gated(F.silu))


@pytest.mark.skipif(not available(), reason="needs Linux on x86-64 or 64-bit Arm")
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 5, 7, 9, 4 * PACKED_ROWS])
def test_copies_of_a_layer_equal_their_unpacked_weights(bits: int, tokens: int) -> None:
    _compare(bits, (96, 64), SWIGLU, Gate("silu"), tokens)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("shape", [(1, 1), (7, 33), (40, 3), (130, 67)])
def test_rows_that_end_inside_a_group(bits: int, shape: tuple[int, int]) -> None:
    for tokens in (1, 6, 4 * PACKED_ROWS):
        _compare(bits, shape, SWIGLU, Gate("silu"), tokens, bias=True)


@pytest.mark.parametrize("tokens", [1, 5, 40])
def test_gates_and_biases(tokens: int) -> None:
    ungated = ExpertTraits(False, False, lambda x: F.relu(x).square())
    _compare(4, (64, 45), ungated, Gate("relu_squared", "ungated"), tokens, bias=True)
    alternating = ExpertTraits(True, False, _interleaved)
    _compare(4, (64, 45), alternating, Gate("silu", "interleaved", 1.702, 0.5, 1.0), tokens, bias=True)


@pytest.mark.parametrize("tokens", [1, 40])
def test_without_a_kernel_copies_are_unpacked(tokens: int) -> None:
    _compare(3, (64, 45), SWIGLU, None, tokens)
    _compare(3, (64, 45), SWIGLU, Gate("silu"), tokens, table=TORCH)


@pytest.mark.parametrize("tokens", [3, 40])
def test_outputs_have_the_dtype_of_the_model(tokens: int) -> None:
    _compare(4, (64, 32), SWIGLU, Gate("silu"), tokens, dtype=torch.bfloat16)


def test_a_copy_is_always_out_by_in_and_its_input_may_be_scaled() -> None:
    copy = _copy(4, 64, 32, True, False, 0)
    x, out = torch.randn(3, 64), torch.zeros(3, 64)
    traits = ExpertTraits(True, True, _gated(F.silu))
    routed = Routed.of(x, torch.zeros(3, 1, dtype=torch.long).numpy(), None, torch.full((3,), 2.0))
    PackedKernels(traits, Gate("silu"), rule(), {}).compute([(0, copy)], routed, out)
    torch.testing.assert_close(out, expert_mlp(2 * x, widened_expert(copy, 64), SWIGLU), rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(not available(), reason="needs Linux on x86-64 or 64-bit Arm")
@pytest.mark.parametrize("tokens", [1, 40])
def test_one_layer_takes_copies_of_any_bits_one_after_another(tokens: int) -> None:
    kernels, x = PackedKernels(SWIGLU, Gate("silu"), rule(), {}), torch.randn(tokens, 64)
    for bits in (4, 2, 8, 3):
        copy, out = _copy(bits, 64, 32, True, False, bits), torch.zeros(tokens, 64)
        kernels.compute([(0, copy)], Routed.of(x, torch.zeros(tokens, 1, dtype=torch.long).numpy()), out)
        torch.testing.assert_close(out, expert_mlp(x, widened_expert(copy, 64), SWIGLU), rtol=1e-5, atol=1e-5)
