"""DBRX: the experts of a layer are stored as three matrices [E * I, H], one expert's rows after another's."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.core_model_loading import Concatenate, ConversionOps, Transpose, WeightConverter, WeightTransform
from transformers.models.dbrx.modeling_dbrx import DbrxExperts as TransformersDbrxExperts

from specmoe.errors import UnsupportedModelError
from specmoe.model.families.base import Family, HookedExperts, replace_modules


class SplitRows(ConversionOps):  # type: ignore[misc]
    """[n * I, H] -> [n, I, H]."""

    keeps_experts_apart = True

    def convert(
        self, input_dict: dict[str, Any], source_patterns: list[str], target_patterns: list[str], **kwargs: Any
    ) -> dict[str, torch.Tensor]:
        rows = kwargs["config"].ffn_config.ffn_hidden_size
        tensors = {name: t[0] if isinstance(t, list) else t for name, t in input_dict.items()}
        return {name: tensor.unflatten(0, (-1, rows)) for name, tensor in tensors.items()}


class DbrxExperts(HookedExperts):
    """``gate_up_proj`` [E, 2I, H] and ``down_proj`` [E, H, I]."""

    def __init__(self, original: TransformersDbrxExperts) -> None:
        super().__init__(original.num_experts, original.mlp.activation_fn)
        inner, outer = original.ffn_hidden_size, original.hidden_size
        self.gate_up_proj = nn.Parameter(torch.empty(self.num_experts, 2 * inner, outer))
        self.down_proj = nn.Parameter(torch.empty(self.num_experts, outer, inner))

    def forward(
        self,
        hidden: torch.Tensor,
        index: torch.Tensor,
        weights: torch.Tensor,
        router_logits: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """As ``HookedExperts.forward`` for hidden states [B, S, H], which is also the shape of the result."""
        return super().forward(hidden.flatten(0, 1), index, weights, router_logits).view_as(hidden)


def _adapt(model: PreTrainedModel) -> None:
    if model.config.attn_config.clip_qkv is None:
        raise UnsupportedModelError(
            "transformers' DBRX attention fails without clip_qkv: set it in attn_config of config.json (8 in the "
            "published models), or download the config again"
        )
    replace_modules(model, TransformersDbrxExperts, DbrxExperts)


def _conversions(model: PreTrainedModel) -> list[WeightTransform]:
    return [
        WeightConverter(
            ["ffn.experts.mlp.w1", "ffn.experts.mlp.v1"],
            "ffn.experts.gate_up_proj",
            [SplitRows(), Concatenate(dim=1)],
        ),
        WeightConverter("ffn.experts.mlp.w2", "ffn.experts.down_proj", [SplitRows(), Transpose(1, 2)]),
    ]


FAMILY = Family(_adapt, _conversions)
