"""Switch Transformers: an encoder-decoder with one expert per token, relative positions and expert capacity.

Capacity is counted per row of one pass.  In ``generate`` the encoder's pass is a whole padded row, which this engine
repeats unchanged; a decoder's pass is one token per row, which always fits.
"""

from __future__ import annotations

import sys

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.switch_transformers.modeling_switch_transformers import (
    SwitchTransformersAttention,
    SwitchTransformersSparseMLP,
)

from specmoe.errors import UnsupportedModelError
from specmoe.model.families.base import Family, replace_modules
from specmoe.model.families.encoder_decoder import EncoderDecoder, FeedForwardExperts, stacking

_LAYERS = ("wi", "wo")


class SwitchBlock(nn.Module):
    """The MoE block of a layer with streamed experts."""

    def __init__(self, original: SwitchTransformersSparseMLP, in_decoder: bool) -> None:
        super().__init__()
        self.router = original.router
        self.experts = FeedForwardExperts(original.experts, _LAYERS, drafts=in_decoder)
        if in_decoder:
            self.router.expert_capacity = sys.maxsize  # each token is a pass by itself

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """[B, S, H] -> [B, S, H]."""
        kept, weights, logits = self.router(hidden_states)  # [B, S, E], [B, S, 1], [B, S, E]
        experts = self.experts.num_experts
        index = kept.argmax(dim=-1).masked_fill(kept.sum(dim=-1) == 0, experts)  # experts: dropped by capacity
        hidden = hidden_states.reshape(-1, hidden_states.shape[-1])
        out: torch.Tensor = self.experts(hidden, index.view(-1, 1), weights.view(-1, 1), logits.view(-1, experts))
        return out.view(hidden_states.shape)


class RaggedBias(SwitchTransformersAttention):  # type: ignore[misc]
    """The decoder's self-attention that computes the relative position bias, for rows of different lengths."""

    def compute_bias(
        self,
        query_length: int,
        key_length: int,
        device: torch.device | None = None,
        past_seen_tokens: torch.Tensor | int = 0,
    ) -> torch.Tensor:
        """[B, heads, Q, K]; ``past_seen_tokens`` is long [B, 1]."""
        keys = torch.arange(key_length, device=device)
        queries = past_seen_tokens + torch.arange(query_length, device=device)  # [B, Q]
        buckets = self._relative_position_bucket(
            keys - queries[..., None],
            bidirectional=False,
            num_buckets=self.relative_attention_num_buckets,
            max_distance=self.relative_attention_max_distance,
        )
        bias: torch.Tensor = self.relative_attention_bias(buckets)  # [B, Q, K, heads]
        return bias.permute(0, 3, 1, 2)


def _adapt(model: PreTrainedModel) -> None:
    encoder, decoder = model.get_encoder(), model.get_decoder()
    replace_modules(encoder, SwitchTransformersSparseMLP, lambda m: SwitchBlock(m, in_decoder=False))
    replace_modules(decoder, SwitchTransformersSparseMLP, lambda m: SwitchBlock(m, in_decoder=True))
    replace_modules(decoder, SwitchTransformersAttention, _attention)


def _attention(original: SwitchTransformersAttention) -> SwitchTransformersAttention:
    if not original.has_relative_attention_bias:
        return original
    return RaggedBias(original.config, has_relative_attention_bias=True, layer_idx=original.layer_idx, is_causal=True)


def _check_config(config: PreTrainedConfig) -> None:
    if config.expert_capacity < 1:
        raise UnsupportedModelError(
            f"expert_capacity={config.expert_capacity} lets no token reach an expert: set it to at least 1 in "
            "config.json"
        )


def _check_rows(config: PreTrainedConfig, rows: int) -> None:
    """Rows do not share capacity."""


def _routed(config: PreTrainedConfig, mask: torch.Tensor) -> torch.Tensor:
    """Padding takes part only where it can take an expert's place from a token."""
    return mask.bool() if mask.shape[1] <= config.expert_capacity else torch.ones_like(mask, dtype=torch.bool)


FAMILY = Family(_adapt, lambda model: stacking(_LAYERS, biases=False))
ENCODER_DECODER = EncoderDecoder(_check_config, _check_rows, _routed)
