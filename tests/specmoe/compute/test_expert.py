"""One expert's product is that of transformers' experts module, however few tokens it has and however it is stored."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from specmoe.compute.expert import ExpertTraits, expert_mlp
from tests.conftest import FAMILIES

HIDDEN, INNER = 32, 16


def _weights(rows: int, is_transposed: bool, bias: bool) -> dict[str, torch.Tensor]:
    """A first matrix [rows, HIDDEN] and ``down_proj`` [HIDDEN, INNER], or both transposed."""
    generator = torch.Generator().manual_seed(0)
    name = "gate_up_proj" if rows == 2 * INNER else "up_proj"
    shapes = {name: (rows, HIDDEN), "down_proj": (HIDDEN, INNER)}
    weights = {n: torch.randn(shape, generator=generator) for n, shape in shapes.items()}
    if bias:
        weights |= {f"{n}_bias": torch.randn(shape[0], generator=generator) for n, shape in shapes.items()}
    return {n: w.t().contiguous() if is_transposed and w.ndim == 2 else w for n, w in weights.items()}


def _swiglu(x: torch.Tensor) -> torch.Tensor:
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate) * up


@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 5, 17])
@pytest.mark.parametrize("is_transposed", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("has_gate", [False, True])
def test_an_expert_is_two_products_around_its_activation(
    has_gate: bool, bias: bool, is_transposed: bool, tokens: int
) -> None:
    rows, first = (2 * INNER, "gate_up_proj") if has_gate else (INNER, "up_proj")
    stored, plain = _weights(rows, is_transposed, bias), _weights(rows, False, bias)
    activation = _swiglu if has_gate else F.relu
    x = torch.randn(tokens, HIDDEN, generator=torch.Generator().manual_seed(1))
    inner = activation(F.linear(x, plain[first], plain.get(f"{first}_bias")))
    expected = F.linear(inner, plain["down_proj"], plain.get("down_proj_bias"))
    got = expert_mlp(x, stored, ExpertTraits(has_gate, is_transposed, activation))
    assert got.shape == (tokens, HIDDEN)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-4)


def test_traits_are_read_from_a_transformers_experts_module() -> None:
    torch.manual_seed(0)
    experts: Any = FAMILIES["qwen3"]().float().model.layers[0].mlp.experts
    weights = {name: parameter[3].detach() for name, parameter in experts.named_parameters()}
    x = torch.randn(5, HIDDEN)
    index, one = torch.full((5, 1), 3), torch.ones(5, 1)
    with torch.no_grad():
        expected = experts(x, index, one)
    torch.testing.assert_close(expert_mlp(x, weights, ExpertTraits.of(experts)), expected, rtol=1e-5, atol=1e-5)


def test_an_expert_without_a_gate_uses_its_activation_function() -> None:
    module = SimpleNamespace(has_gate=False, is_transposed=True, act_fn=F.relu)
    assert ExpertTraits.of(module) == ExpertTraits(False, True, F.relu)
