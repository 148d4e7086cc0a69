"""What the encoder-decoder families share: their experts, and what else the engine asks of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.core_model_loading import MergeModulelist, WeightConverter, WeightTransform

from specmoe.model.families.base import HookedExperts


def _unchanged(model: PreTrainedModel) -> None:
    pass


@dataclass(frozen=True)
class EncoderDecoder:
    """What the engine asks of a family with an encoder.

    Attributes:
        check_config: raises UnsupportedModelError for a config that cannot be followed exactly.
        check_rows: the same for a batch of so many rows, whose decoder steps transformers computes together.
        routed: which tokens of padded source texts (mask [B, S], 0 on padding) need their experts, bool [B, S].
        correct: changes transformers' own model where the checkpoint's config.json asks for it.
    """

    check_config: Callable[[PreTrainedConfig], None]
    check_rows: Callable[[PreTrainedConfig, int], None]
    routed: Callable[[PreTrainedConfig, torch.Tensor], torch.Tensor]
    correct: Callable[[PreTrainedModel], None] = _unchanged


class FeedForwardExperts(HookedExperts):
    """Experts of two linear layers, stored one after another in the checkpoint: ``experts.expert_N.NAME``.

    Args:
        original: transformers' experts, a ModuleDict with ``num_experts``.
        layers: the names of the linear layers in an expert.
        drafts: whether draft passes run them; an encoder's experts never draft.
    """

    has_gate = False
    may_skip = True

    def __init__(self, original: Any, layers: tuple[str, str], drafts: bool) -> None:
        first = original["expert_0"]
        super().__init__(original.num_experts, first.act)
        self.drafts = drafts
        for name, layer in zip(("up_proj", "down_proj"), (getattr(first, layer) for layer in layers), strict=True):
            self.register_parameter(name, self._stacked(layer.weight))
            if layer.bias is not None:
                self.register_parameter(f"{name}_bias", self._stacked(layer.bias))

    def _stacked(self, parameter: nn.Parameter) -> nn.Parameter:
        """An empty parameter [E, ...] for one of an expert's."""
        return nn.Parameter(parameter.new_empty(self.num_experts, *parameter.shape), requires_grad=False)


def stacking(layers: tuple[str, str], biases: bool) -> list[WeightTransform]:
    """How an expert's linear layers become slices of the parameters of ``FeedForwardExperts``."""
    names = [(f"{layer}.weight", ours) for layer, ours in zip(layers, ("up_proj", "down_proj"), strict=True)]
    if biases:
        names += [(f"{layer}.bias", f"{ours}_bias") for layer, (_, ours) in zip(layers, list(names), strict=True)]
    return [
        WeightConverter(rf"experts.expert_*.{theirs}", rf"experts.{ours}", operations=[MergeModulelist(dim=0)])
        for theirs, ours in names
    ]
