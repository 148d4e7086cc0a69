"""Training formulations of the MoE blocks of NLLB-MoE and Llama 4, which are off transformers' experts interface.

Each replaces the class's own block under the same parameter names, so that what is saved has the class's layout.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from transformers import Llama4ForCausalLM, NllbMoeForConditionalGeneration
from transformers.models.llama4.modeling_llama4 import Llama4TextMoe
from transformers.models.nllb_moe.modeling_nllb_moe import NllbMoeSparseMLP

from workloads.train.sorted_experts import FLOAT32_ROW_MULTIPLE, ROW_MULTIPLE, Groups

EXPERT_PARAMETERS = ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")


class NllbMoeBlock(nn.Module):
    """NLLB-MoE's block with both chosen experts of a token: ``follow_router`` of ``specmoe.model.families.nllb_moe``,
    which also names the fault of transformers, in a form for training.

    In training an expert takes at most ``capacity`` first choices, and
    second choices in what they leave, as the class's router does it; evaluation has no limit.  The experts' parameters
    are stacked ([E, ...]): a step over a few hundred small tensors takes a third longer.
    """

    def __init__(self, block: NllbMoeSparseMLP) -> None:
        super().__init__()
        self.router = block.router
        self.capacity = block.router.expert_capacity
        for name in EXPERT_PARAMETERS:
            each = [block.experts[f"expert_{e}"].get_parameter(name).data for e in range(block.num_experts)]
            self.register_parameter(name.replace(".", "_"), nn.Parameter(torch.stack(each)))

    def forward(self, hidden_states: torch.Tensor, padding_mask: torch.Tensor | None = None) -> torch.Tensor:
        """[B, S, H] and the attention mask of its layer -> [B, S, H]."""
        x = hidden_states.flatten(0, 1)
        self.router.expert_capacity = self.capacity  # evaluation overwrites it
        with torch.autocast("cpu", enabled=False):
            _, gates, _ = self.router(x.float(), padding_mask)  # [T, E], at most two of a row are not zero
        weights, index = gates.topk(2, dim=-1)
        dtype = _compute_dtype(x)
        groups = Groups.of(index, gates.shape[1], _multiple(dtype))
        rows = groups.rows(x.to(dtype))
        hidden = F.relu(self._linear(groups, rows, "fc1"))
        out = groups.picks(self._linear(groups, hidden, "fc2"), len(x))
        weighted: torch.Tensor = (out * weights.to(out.dtype).unsqueeze(-1)).sum(dim=1)
        return weighted.to(hidden_states.dtype).view_as(hidden_states)

    def _linear(self, groups: Groups, rows: torch.Tensor, name: str) -> torch.Tensor:
        weight, bias = self.get_parameter(f"{name}_weight"), self.get_parameter(f"{name}_bias")
        return groups.linear(rows, weight.to(rows.dtype)) + groups.per_row(bias.to(rows.dtype))


class Llama4MoeBlock(nn.Module):
    """Llama 4's block, which computes an expert for the tokens routed to it only (the class's own: for all tokens)."""

    def __init__(self, block: Llama4TextMoe) -> None:
        super().__init__()
        self.router, self.experts, self.shared_expert = block.router, block.experts, block.shared_expert

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[B, S, H] -> [T, H] and the router's logits [T, E]."""
        x = hidden_states.flatten(0, 1)
        with torch.autocast("cpu", enabled=False):
            _, logits = self.router(x.float())
        best = logits.topk(self.router.top_k, dim=-1)
        dtype = _compute_dtype(x)
        groups = Groups.of(best.indices, self.experts.num_experts, _multiple(dtype))
        scores = best.values.sigmoid().flatten()  # [T * K]
        rows = groups.rows(x.to(dtype))
        scaled = rows * rows.new_zeros(len(rows)).index_copy(0, groups.row_of_pick, scores.to(rows.dtype))[:, None]
        gate, up = groups.linear(scaled, self.experts.gate_up_proj.to(rows.dtype).transpose(1, 2)).chunk(2, dim=-1)
        routed = groups.linear(up * F.silu(gate), self.experts.down_proj.to(rows.dtype).transpose(1, 2))
        out = self.shared_expert(x) + groups.picks(routed, len(x)).sum(dim=1)
        return out.to(hidden_states.dtype), logits


def _compute_dtype(x: torch.Tensor) -> torch.dtype:
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype


def _multiple(dtype: torch.dtype) -> int:
    return FLOAT32_ROW_MULTIPLE if dtype == torch.float32 else ROW_MULTIPLE


def with_published_routing(model: NllbMoeForConditionalGeneration) -> NllbMoeForConditionalGeneration:
    """The model with ``NllbMoeBlock`` in the place of every ``NllbMoeSparseMLP``."""
    for side in (model.model.encoder, model.model.decoder):
        for layer in side.layers:
            if layer.is_sparse:
                layer.ffn = NllbMoeBlock(layer.ffn)
    return model


def as_class_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state of a model with ``NllbMoeBlock``s under the class's own names: one tensor per expert."""
    stacked = {f".ffn.{name.replace('.', '_')}": name for name in EXPERT_PARAMETERS}
    named: dict[str, torch.Tensor] = {}
    for key, value in state.items():
        for suffix, name in stacked.items():
            if key.endswith(suffix):
                block = key.removesuffix(suffix)
                named |= {f"{block}.ffn.experts.expert_{e}.{name}": part for e, part in enumerate(value)}
                break
        else:
            named[key] = value
    return named


def with_sorted_experts(model: Llama4ForCausalLM) -> Llama4ForCausalLM:
    """The model with ``Llama4MoeBlock`` in the place of every ``Llama4TextMoe``."""
    for layer in model.model.layers:
        if layer.is_moe_layer:
            layer.feed_forward = Llama4MoeBlock(layer.feed_forward)
    return model
