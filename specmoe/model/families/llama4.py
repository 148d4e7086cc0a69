"""Llama-4: sigmoid scores multiply the input of the chosen expert, and queries without rotary positions are scaled."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama4.modeling_llama4 import (
    Llama4TextAttention,
    Llama4TextDecoderLayer,
    Llama4TextExperts,
    Llama4TextMoe,
    eager_attention_forward,
)

from specmoe.model.families.base import Family, HookedExperts, replace_modules


class Llama4Experts(HookedExperts):
    """``gate_up_proj`` [E, H, 2I] and ``down_proj`` [E, I, H]."""

    is_transposed = True
    scales_input = True

    def __init__(self, original: Llama4TextExperts) -> None:
        super().__init__(original.num_experts, original.act_fn)
        self.gate_up_proj, self.down_proj = original.gate_up_proj, original.down_proj


class Llama4Moe(nn.Module):
    """The MoE block with only the router's experts.

    transformers runs every expert on every token with the input times its score, which is 0 for experts that the
    router did not choose; without biases these give 0.
    """

    def __init__(self, original: Llama4TextMoe) -> None:
        super().__init__()
        self.top_k, self.hidden_dim = original.top_k, original.hidden_dim
        self.experts = Llama4Experts(original.experts)
        self.router, self.shared_expert = original.router, original.shared_expert

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[B, S, H] -> ([B * S, H], router logits [B * S, E])."""
        hidden = hidden_states.reshape(-1, self.hidden_dim)
        scores, logits = self.router(hidden)  # [T, E] each
        index = logits.topk(self.top_k, dim=1).indices
        routed = self.experts(hidden, index, scores.gather(1, index), logits)
        return self.shared_expert(hidden) + routed, logits


class ScaledAttention(Llama4TextAttention):  # type: ignore[misc]
    """Attention of a layer without rotary positions, with temperature tuning of the queries.

    A query's scale depends on its position in the padded batch, as in transformers; rows are at different positions.
    """

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: torch.Tensor,
        attention_mask: torch.Tensor | None,
        cache: Any = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """[B, Q, H] -> [B, Q, H]; ``cache`` is a ``RaggedCache``."""
        shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        positions = cache.lengths.padded_positions(hidden_states.shape[1])  # [B, Q]
        scales = torch.log1p(torch.floor((positions.float() + 1.0) / self.floor_scale)) * self.attn_scale + 1.0
        queries = self.q_proj(hidden_states).view(shape)
        queries = (queries * scales[..., None, None]).to(queries.dtype).transpose(1, 2)
        keys = self.k_proj(hidden_states).view(shape).transpose(1, 2)
        values = self.v_proj(hidden_states).view(shape).transpose(1, 2)
        keys, values = cache.update(keys, values, self.layer_idx)
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        output, weights = attention(
            self, queries, keys, values, attention_mask, dropout=0.0, scaling=self.scaling, **kwargs
        )
        return self.o_proj(output.reshape(*hidden_states.shape[:-1], -1).contiguous()), weights


def _adapt(model: PreTrainedModel) -> None:
    replace_modules(model, Llama4TextMoe, Llama4Moe)
    for layer in [m for m in model.modules() if isinstance(m, Llama4TextDecoderLayer)]:
        attention = layer.self_attn
        if attention.attn_temperature_tuning and not attention.use_rope:
            layer.self_attn = ScaledAttention(attention.config, attention.layer_idx)


FAMILY = Family(_adapt)
