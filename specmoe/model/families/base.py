"""What the modules of all families share: the adapter, and experts that hand their tokens to the engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.core_model_loading import WeightTransform


def _no_conversions(model: PreTrainedModel) -> list[WeightTransform]:
    return []


def _ignores_nothing(model: PreTrainedModel, key: str) -> str | None:
    return None


@dataclass(frozen=True)
class Family:
    """How one family is fitted to the engine.

    Attributes:
        adapt: replaces modules of a model that was built on ``meta``; called with ``meta`` and the model's dtype as
            torch's defaults.
        conversions: transformers' weight conversions from checkpoint keys to the parameters of the replaced modules;
            none where these keep their names and shapes.
        ignores: why a key of the checkpoint is not needed, or None.
        restores_state: its recurrent layers can go back to the last accepted token.
    """

    adapt: Callable[[PreTrainedModel], None]
    conversions: Callable[[PreTrainedModel], list[WeightTransform]] = _no_conversions
    ignores: Callable[[PreTrainedModel, str], str | None] = _ignores_nothing
    restores_state: bool = False


class HookedExperts(nn.Module):
    """Experts that the engine streams.  The attributes are those of transformers' experts modules.

    A subclass adds parameters [E, ...]: ``gate_up_proj`` (``up_proj`` without a gate) and ``down_proj``, with
    ``NAME_bias`` where the family has biases.  ``scales_input``: weights multiply an expert's input, not its output.
    ``may_skip``: a pick may be ``num_experts``, which names no expert and gives 0.
    """

    has_gate = True
    is_transposed = False
    has_post_expert_norm = False
    scales_input = False
    may_skip = False
    specmoe_layer: Any  # an ExpertsLayer, once the model is assembled

    def __init__(self, num_experts: int, act_fn: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.num_experts, self.act_fn = num_experts, act_fn

    def _apply_gate(self, gate_up: torch.Tensor) -> torch.Tensor:
        """[n, 2I] -> [n, I]."""
        gate, up = gate_up.chunk(2, dim=-1)
        return self.act_fn(gate) * up

    def forward(
        self,
        hidden: torch.Tensor,
        index: torch.Tensor,
        weights: torch.Tensor,
        router_logits: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Weighted sum of the picked experts' outputs: [T, H].

        Args:
            hidden: [T, H].
            index: long [T, K], the picked experts.
            weights: [T, K].
            router_logits: [T, E], for substitution by the best gate; not needed if the block's ``router`` returns them.
        """
        if router_logits is not None:
            self.specmoe_layer.router_logits = router_logits
        out: torch.Tensor = self.specmoe_layer(hidden, index, weights)
        return out


def replace_modules(model: nn.Module, kind: type[nn.Module], make: Callable[[Any], nn.Module]) -> None:
    """Replace every module of ``model`` of exactly the class ``kind`` by what ``make`` makes of it."""
    for name, module in list(model.named_modules()):
        if type(module) is kind:
            model.set_submodule(name, make(module))
