"""JetMoE: experts as two stacked matrices.  The experts of its attention are small and stay with the other weights."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.core_model_loading import WeightRenaming, WeightTransform
from transformers.models.jetmoe.modeling_jetmoe import JetMoeMoE

from specmoe.model.families.base import Family, HookedExperts, replace_modules


class JetMoeExperts(HookedExperts):
    """``gate_up_proj`` [E, 2I, H] and ``down_proj`` [E, H, I]."""

    def __init__(self, original: JetMoeMoE) -> None:
        super().__init__(original.input_linear.num_experts, original.activation)
        self.gate_up_proj, self.down_proj = original.input_linear.weight, original.output_linear.weight


class JetMoeBlock(nn.Module):
    """The MoE block, with the routing of ``JetMoeTopKGating``."""

    def __init__(self, original: JetMoeMoE) -> None:
        super().__init__()
        self.experts = JetMoeExperts(original)
        self.router, self.bias = original.router, original.bias

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """[B, S, H] -> [B, S, H]."""
        hidden = hidden_states.flatten(0, 1)
        logits = self.router.layer(hidden).float()  # [T, E]
        top, index = logits.topk(self.router.top_k, dim=1)
        weights = torch.softmax(top, dim=1).type_as(hidden)
        out: torch.Tensor = self.experts(hidden, index, weights, logits).view_as(hidden_states) + self.bias
        return out


def _adapt(model: PreTrainedModel) -> None:
    replace_modules(model, JetMoeMoE, JetMoeBlock)


def _conversions(model: PreTrainedModel) -> list[WeightTransform]:
    return [
        WeightRenaming(r"mlp\.input_linear\.weight", "mlp.experts.gate_up_proj"),
        WeightRenaming(r"mlp\.output_linear\.weight", "mlp.experts.down_proj"),
    ]


FAMILY = Family(_adapt, _conversions)
