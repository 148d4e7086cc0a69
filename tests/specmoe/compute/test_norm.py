"""A norm is replaced only where one call gives the module's own result."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeRMSNorm
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextRMSNormGated

from specmoe.compute.norm import KernelNorm, recognise, replace_norms


def _scaled(norm: Any) -> Any:
    with torch.no_grad():
        norm.weight.normal_(generator=torch.Generator().manual_seed(1))
    return norm


@pytest.mark.parametrize("make", [Qwen3MoeRMSNorm, GemmaRMSNorm])
def test_a_replaced_norm_gives_the_same_result_with_the_same_parameters(make: Any) -> None:
    norm = _scaled(make(40, eps=1e-3))
    model: Any = nn.Sequential(nn.Linear(8, 40), norm)
    x = torch.randn(3, 2, 8)
    with torch.inference_mode():
        expected = model(x)
        assert replace_norms(model) == 1
        torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-6)
    assert isinstance(model[1], KernelNorm)
    assert model[1].weight is norm.weight


class _Shifted(Qwen3MoeRMSNorm):  # type: ignore[misc]
    """Not a root-mean-square norm: it takes the mean off."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = super().forward(hidden_states - hidden_states.mean(-1, keepdim=True))
        return out


@pytest.mark.parametrize(
    "module",
    [
        nn.LayerNorm(16),
        nn.Linear(16, 16, bias=False),
        _Shifted(16),
        Qwen3NextRMSNormGated(16),
        Qwen3MoeRMSNorm(16).bfloat16(),
        Qwen3MoeRMSNorm(16).to("meta"),
    ],
    ids=lambda module: type(module).__name__,
)
def test_other_modules_stay(module: nn.Module) -> None:
    assert recognise(module) is None
