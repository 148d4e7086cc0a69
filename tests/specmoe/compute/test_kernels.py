"""Every kernel gives torch's result within rounding: all dtypes, gates, biases, odd shapes and numbers of rows."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from specmoe.compute import calls
from specmoe.compute.expert import ExpertTraits, expert_mlp
from specmoe.compute.gate import Gate, recognise
from specmoe.compute.layer import ExpertKernels
from specmoe.compute.linear import KernelLinear, replace_linears
from specmoe.compute.products import product
from specmoe.compute.routed import Routed
from specmoe.compute.table import DTYPES, ROWS, TORCH, KernelTable, candidates
from specmoe.compute.threads import available

pytestmark = pytest.mark.skipif(not available(), reason="needs Linux on x86-64 or 64-bit Arm")
STREAMING = KernelTable(
    "test",
    {f"{p} {str(d).removeprefix('torch.')}": ["streaming"] * len(ROWS) for p in ("experts", "linear") for d in DTYPES},
)
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}
GATES = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "relu_squared": lambda x: F.relu(x).square(),
}


def _gated(act: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    def apply(x: torch.Tensor) -> torch.Tensor:
        gate, up = x.chunk(2, dim=-1)
        return act(gate) * up

    return apply


def _clamped(x: torch.Tensor) -> torch.Tensor:
    """The gate of gpt-oss, with its limit small enough to be reached."""
    gate, up = x[..., ::2].clamp(max=0.5), x[..., 1::2].clamp(-0.5, 0.5)
    return (up + 1) * gate * torch.sigmoid(gate * 1.702)


def _experts(
    experts: int, hidden: int, inner: int, dtype: torch.dtype, has_gate: bool = True, bias: bool = False
) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(hidden + inner)
    first, rows = ("gate_up_proj", 2 * inner) if has_gate else ("up_proj", inner)
    shapes: dict[str, tuple[int, ...]] = {first: (rows, hidden), "down_proj": (hidden, inner)}
    if bias:
        shapes |= {f"{first}_bias": (rows,), "down_proj_bias": (hidden,)}
    return [
        {n: (torch.randn(s, generator=generator) / s[-1] ** 0.5).to(dtype) for n, s in shapes.items()}
        for _ in range(experts)
    ]


def _routed(hidden: torch.Tensor, picks: torch.Tensor) -> Routed:
    return Routed.of(hidden, picks.numpy())


def _compare(
    weights: list[dict[str, torch.Tensor]], traits: ExpertTraits, gate: Gate | None, tokens: int, dtype: torch.dtype
) -> None:
    """All experts of a layer in one call, against each by torch in float32 from the same weights."""
    generator = torch.Generator().manual_seed(tokens)
    hidden = torch.randn(tokens, weights[0]["down_proj"].shape[0], generator=generator).to(dtype)
    picks = torch.rand(tokens, len(weights), generator=generator).argsort(dim=1)[:, : max(1, len(weights) - 1)]
    routed, out = _routed(hidden, picks), hidden.new_zeros(picks.numel(), hidden.shape[1])
    ExpertKernels(traits, gate, STREAMING).compute(list(enumerate(weights)), routed, out)
    for expert, (start, end) in routed.bounds.items():
        rows = routed.order[start:end]
        wide = {name: tensor.float() for name, tensor in weights[expert].items()}
        expected = expert_mlp(hidden[rows // picks.shape[1]].float(), wide, traits)
        scale = float(expected.abs().max())
        torch.testing.assert_close(out[rows].float(), expected, rtol=0, atol=TOLERANCE[dtype] * max(scale, 1e-3))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [*range(1, 10), 17, 48, 113])  # few rows, and one to six panels
def test_experts_of_a_layer_in_one_call_equal_each_by_torch(tokens: int, dtype: torch.dtype) -> None:
    traits = ExpertTraits(True, False, _gated(F.silu))
    _compare(_experts(3, 48, 32, dtype), traits, Gate("silu"), tokens, dtype)


@pytest.mark.parametrize(("hidden", "inner"), [(1, 1), (7, 3), (33, 17), (40, 1), (130, 67), (64, 1500)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_odd_shapes_and_biases(hidden: int, inner: int, dtype: torch.dtype) -> None:
    traits = ExpertTraits(True, False, _gated(F.silu))
    for tokens in (5, 60):
        _compare(_experts(2, hidden, inner, dtype, bias=True), traits, Gate("silu"), tokens, dtype)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("has_gate", [False, True])
@pytest.mark.parametrize("name", GATES)
def test_every_gate_and_activation(name: str, has_gate: bool, bias: bool) -> None:
    activation = _gated(GATES[name]) if has_gate else GATES[name]
    traits = ExpertTraits(has_gate, False, activation)
    gate = recognise(traits, SimpleNamespace())
    assert gate == Gate(name, "concatenated" if has_gate else "ungated")
    for tokens in (1, 2, 3, 4, 7, 40):
        _compare(_experts(3, 24, 13, torch.float32, has_gate, bias), traits, gate, tokens, torch.float32)


def test_interleaved_clamped_gates_with_an_offset() -> None:
    traits = ExpertTraits(True, False, _clamped)
    gate = recognise(traits, SimpleNamespace(limit=0.5, alpha=1.702))
    assert gate == Gate("silu", "interleaved", 1.702, 0.5, 1.0)
    for tokens in (7, 40):
        _compare(_experts(3, 24, 14, torch.float32, bias=True), traits, gate, tokens, torch.float32)


def test_an_unknown_activation_is_not_recognised_and_computed_by_torch() -> None:
    traits = ExpertTraits(True, False, _gated(torch.sin))
    assert recognise(traits, SimpleNamespace()) is None
    _compare(_experts(3, 24, 14, torch.float32), traits, None, 7, torch.float32)


def test_a_limit_that_only_large_values_reach_is_not_overlooked() -> None:
    def clamped(x: torch.Tensor) -> torch.Tensor:
        gate, up = x.chunk(2, dim=-1)
        return F.silu(gate.clamp(max=300.0)) * up.clamp(-300.0, 300.0)

    gate = recognise(ExpertTraits(True, False, clamped), SimpleNamespace(swiglu_limit=300.0))
    assert gate is not None
    assert gate.limit == 300.0
    plain = recognise(ExpertTraits(True, False, _gated(F.silu)), SimpleNamespace(swiglu_limit=300.0))
    assert plain == Gate("silu")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_those_of_torch(bad: float) -> None:
    weight, x = torch.randn(9, 40), torch.randn(5, 40)
    x[2, 7] = bad
    got, expected = product(x, weight, None, "streaming"), F.linear(x, weight)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 6, 7, 8, 9, 33, 100])
def test_linear_layers_by_every_kernel(rows: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(rows)
    for width, inner in ((1, 1), (65, 130), (300, 513)):
        layer = nn.Linear(inner, width).to(dtype)
        x = torch.randn(rows, inner, generator=generator).to(dtype)
        expected = F.linear(x.float(), layer.weight.float(), layer.bias.float())
        for kernel in candidates(dtype):
            with torch.inference_mode():
                got = product(x, layer.weight, layer.bias, kernel)
            assert got.dtype == dtype
            atol = TOLERANCE[dtype] * float(expected.abs().max())
            torch.testing.assert_close(got.float(), expected, rtol=0, atol=atol, msg=kernel)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_weights_with_float32_rows_equal_the_widened_weights(dtype: torch.dtype) -> None:
    weight, x = torch.randn(33, 70).to(dtype), torch.randn(3, 70)
    for kernel in (*candidates(dtype),):
        torch.testing.assert_close(product(x, weight, None, kernel), F.linear(x, weight.float()), rtol=1e-5, atol=1e-5)


def test_a_bias_may_have_gaps() -> None:
    weight, bias, x = torch.randn(33, 20), torch.randn(66)[::2], torch.randn(5, 20)
    for kernel in candidates(torch.float32):
        torch.testing.assert_close(product(x, weight, bias, kernel), F.linear(x, weight, bias), rtol=1e-5, atol=1e-5)


def test_the_same_rows_give_the_same_bits_every_time() -> None:
    weight, x = torch.randn(500, 600), torch.randn(7, 600)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3, 2):
            torch.set_num_threads(threads)
            results.append(product(x, weight, None, "streaming"))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], other) for other in results)


def test_linear_layers_of_a_model_are_replaced_and_share_their_weights() -> None:
    model: Any = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Sequential(nn.Linear(96, 10)), nn.Linear(4, 4))
    x = torch.randn(2, 3, 64)
    weight, expected = model[0].weight, model[:3](x)
    assert replace_linears(model, STREAMING, smallest=100) == {torch.float32}
    assert isinstance(model[0], KernelLinear)
    assert isinstance(model[2][0], KernelLinear)
    assert type(model[3]) is nn.Linear
    assert model[0].weight is weight
    with torch.inference_mode():
        torch.testing.assert_close(model[:3](x), expected, rtol=1e-5, atol=1e-5)
    assert model[:3](x).requires_grad  # outside of inference it is a plain linear layer


def test_transposed_weights_and_scaled_inputs_are_computed_one_expert_at_a_time() -> None:
    weights = _experts(2, 24, 14, torch.float32)
    transposed = [{n: w.t().contiguous() for n, w in one.items()} for one in weights]
    hidden, picks = torch.randn(4, 24), torch.tensor([[0, 1]] * 4)
    plain, traits = _routed(hidden, picks), ExpertTraits(True, False, _gated(F.silu))
    scaled = Routed(hidden, plain.order, plain.bounds, 2, torch.full((8,), 2.0))
    outs = [torch.zeros(8, 24) for _ in range(4)]
    for table in (STREAMING, TORCH):
        ExpertKernels(traits, Gate("silu"), table).compute(list(enumerate(weights)), plain, outs[0])
        turned = ExpertTraits(True, True, _gated(F.silu))
        ExpertKernels(turned, Gate("silu"), table).compute(list(enumerate(transposed)), plain, outs[1])
        torch.testing.assert_close(outs[0], outs[1], rtol=1e-5, atol=1e-5)
        ExpertKernels(traits, Gate("silu"), table).compute(list(enumerate(weights)), scaled, outs[2])
        doubled = Routed(2 * hidden, plain.order, plain.bounds, 2)
        ExpertKernels(traits, Gate("silu"), table).compute(list(enumerate(weights)), doubled, outs[3])
        torch.testing.assert_close(outs[2], outs[3], rtol=1e-5, atol=1e-5)


def test_many_rows_are_multiplied_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "CHUNK_BYTES", 1)  # three panels at a time
    traits = ExpertTraits(True, False, _gated(F.silu))
    _compare(_experts(2, 24, 14, torch.bfloat16, bias=True), traits, Gate("silu"), 400, torch.bfloat16)
    weight, x = torch.randn(33, 20), torch.randn(301, 20)
    torch.testing.assert_close(product(x, weight, None, "streaming"), F.linear(x, weight), rtol=1e-5, atol=1e-5)
