"""LongCat-Flash: the router may pick identity experts, which return their input and have nothing to stream."""

from __future__ import annotations

import re

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.models.longcat_flash.modeling_longcat_flash import LongcatFlashExperts

from specmoe.model.families.base import Family, HookedExperts, replace_modules

_FIRST_PRODUCT = re.compile(r"\.mlp\.experts\.(\d+)\.(?:gate|up)_proj\.")


class LongcatExperts(HookedExperts):
    """The experts with weights, ``gate_up_proj`` [E, 2I, H] and ``down_proj`` [E, H, I]; higher picks are identity.

    ``choices`` counts both.  transformers' ``gate_up_proj`` has rows for identity experts too, which nothing reads.
    """

    may_skip = True

    def __init__(self, original: LongcatFlashExperts) -> None:
        super().__init__(original.num_routed_experts, original.act_fn)
        self.choices = original.total_experts
        self.gate_up_proj = nn.Parameter(torch.empty(self.num_experts, *original.gate_up_proj.shape[1:]))
        self.down_proj = original.down_proj

    def forward(
        self,
        hidden: torch.Tensor,
        index: torch.Tensor,
        weights: torch.Tensor,
        router_logits: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """As ``HookedExperts.forward``; picks from E on are identity experts."""
        is_identity = index >= self.num_experts
        routed = super().forward(hidden, index.clamp(max=self.num_experts), weights, router_logits)
        return routed + (hidden * (weights * is_identity).sum(dim=1, keepdim=True)).to(hidden.dtype)


def _adapt(model: PreTrainedModel) -> None:
    replace_modules(model, LongcatFlashExperts, LongcatExperts)


def _ignores(model: PreTrainedModel, key: str) -> str | None:
    found, config = _FIRST_PRODUCT.search(key), model.config
    if found and 0 <= int(found[1]) - config.n_routed_experts < (config.zero_expert_num or 0):
        return "identity experts have no weights"  # a down_proj shows that the expert is none: transformers saves none
    return None


FAMILY = Family(_adapt, ignores=_ignores)
