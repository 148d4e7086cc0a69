"""A router is replaced only where one call gives the module's own logits, weights and experts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers.models.mixtral.modeling_mixtral import MixtralTopKRouter
from transformers.models.olmoe.modeling_olmoe import OlmoeTopKRouter
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeTopKRouter

from specmoe.compute.router import KernelRouter, recognise, replace_routers
from specmoe.compute.threads import available

pytestmark = pytest.mark.skipif(not available(), reason="needs Linux on x86-64 or 64-bit Arm")


def _router(kind: Any = Qwen3MoeTopKRouter, top_k: int = 3, norm: bool = True) -> Any:
    config = SimpleNamespace(
        num_experts_per_tok=top_k, num_experts=9, num_local_experts=9, norm_topk_prob=norm, hidden_size=24
    )
    router = kind(config).float()
    with torch.no_grad():
        router.weight.normal_(generator=torch.Generator().manual_seed(1))
    return router


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("top_k", [1, 3, 9])
@pytest.mark.parametrize("kind", [Qwen3MoeTopKRouter, MixtralTopKRouter, OlmoeTopKRouter])
def test_a_replaced_router_gives_the_same_result(kind: Any, top_k: int, norm: bool) -> None:
    router = _router(kind, top_k, norm)
    model = nn.ModuleDict({"gate": router})
    assert replace_routers(model) == 1
    assert replace_routers(model) == 0
    assert isinstance(model["gate"], KernelRouter)
    assert model["gate"].weight is router.weight
    for x in (torch.randn(5, 24), torch.randn(2, 3, 24), 3 * torch.randn(4, 24), torch.randn(24, 5).t()):
        with torch.inference_mode():
            logits, weights, experts = model["gate"](x)
            expected = router(x)
        torch.testing.assert_close(logits, expected[0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(weights, expected[1], rtol=1e-4, atol=1e-6)
        assert torch.equal(experts, expected[2])


def test_many_tokens_are_left_to_the_module() -> None:
    router = recognise(_router())
    assert router is not None
    router.__dict__["_layer"] = lambda x: "the module's"
    with torch.inference_mode():
        assert router(torch.randn(5000, 24)) == "the module's"
    assert router(torch.randn(1, 24)) == "the module's", "gradients"


def test_logits_that_are_equal_or_not_numbers_still_pick_different_experts() -> None:
    router = recognise(_router(top_k=4))
    assert router is not None
    for value in (0.0, float("nan"), float("inf")):
        with torch.inference_mode():
            experts = router(torch.full((2, 24), value))[2]
        assert all(len(set(row)) == 4 and set(row) <= set(range(9)) for row in experts.tolist())


class _Sigmoid(Qwen3MoeTopKRouter):  # type: ignore[misc]
    def forward(self, hidden_states: torch.Tensor) -> Any:
        logits = hidden_states @ self.weight.t()
        return logits, *logits.sigmoid().topk(self.top_k, dim=-1)


@pytest.mark.parametrize(
    "module", [_router(_Sigmoid), _router().bfloat16(), _router().to("meta"), nn.Linear(24, 9, bias=False)]
)
def test_other_modules_stay(module: nn.Module) -> None:
    assert recognise(module) is None
