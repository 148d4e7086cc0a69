"""Routing: the load-balancing loss, and the skew on held-out text that the model card reports."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from workloads.model_card import LayerSkew
from workloads.skew import gini, top_share
from workloads.train.batches import Batch
from workloads.train.recipe import Recipe


def router_logits(output: Any) -> list[torch.Tensor]:
    """The router logits [T, E] of every MoE layer in a model's output, the encoder's first."""
    if "decoder_router_logits" in output:
        return [*output.encoder_router_logits, *output.decoder_router_logits]
    return list(output.router_logits)


def load_balancing(output: Any, valid: tuple[torch.Tensor, ...], recipe: Recipe) -> torch.Tensor:
    """The class's own load-balancing loss, or where it has none that of Switch Transformers, mean over layers.

    The latter is K for uniform use and E where one expert takes every token.  ``valid`` has the masks of the tokens
    that count, the encoder's and the decoder's, or nothing where all do.
    """
    if getattr(output, "aux_loss", None) is not None:
        own: torch.Tensor = output.aux_loss
        return own
    layers = router_logits(output)
    total = layers[0].new_zeros((), dtype=torch.float32)
    for logits, mask in zip(layers, masks(valid, recipe, len(layers)), strict=True):
        shares = logits.float().softmax(-1)  # [T, E]
        picked = F.one_hot(shares.topk(recipe.experts_per_token, dim=-1).indices, recipe.experts).sum(1).float()
        if mask is not None:
            shares, picked = shares[mask.flatten()], picked[mask.flatten()]
        total = total + recipe.experts * (picked.mean(0) * shares.mean(0)).sum()
    return total / len(layers)


def masks(valid: tuple[torch.Tensor, ...], recipe: Recipe, layers: int) -> Sequence[torch.Tensor | None]:
    """The mask of each MoE layer: the encoder's layers come first; None where every token counts."""
    if not valid:
        return [None] * layers
    in_encoder = recipe.encoder_layers // recipe.sparse_step
    return [valid[0]] * in_encoder + [valid[1]] * (layers - in_encoder)


@torch.no_grad()
def measure_skew(model: PreTrainedModel, recipe: Recipe, batches: Iterable[Batch]) -> list[LayerSkew]:
    """Route the batches and describe every MoE layer; of an encoder-decoder the encoder's layers come first."""
    layers = [layer for layer in range(recipe.layers) if (layer + 1) % recipe.sparse_step == 0]
    usage = [_Usage(recipe.experts) for _ in layers]
    for batch in batches:
        output = model(**batch.inputs, use_cache=False, output_router_logits=True)
        for own, logits, mask in zip(
            usage, router_logits(output), masks(batch.valid, recipe, len(layers)), strict=True
        ):
            picks = logits.topk(recipe.experts_per_token, dim=-1).indices.unflatten(0, (len(batch.targets), -1))
            own.add(picks, mask)
    return [own.skew(layer) for own, layer in zip(usage, layers, strict=True)]


def describe(layer: int, picks: torch.Tensor, experts: int) -> LayerSkew:
    """The skew of one layer's ``picks`` [sequences, length, K] among ``experts``."""
    usage = _Usage(experts)
    usage.add(picks, None)
    return usage.skew(layer)


class _Usage:
    """How often one layer picks each expert, and how often a token picks an expert of the token before it."""

    def __init__(self, experts: int) -> None:
        self.counts = torch.zeros(experts, dtype=torch.long)
        self.repeated = self.repeatable = 0

    def add(self, picks: torch.Tensor, valid: torch.Tensor | None) -> None:
        """Count ``picks`` [B, S, K] of the tokens that are ``valid`` [B, S], or of all."""
        valid = torch.ones(picks.shape[:2], dtype=torch.bool) if valid is None else valid
        self.counts += torch.bincount(picks[valid].flatten(), minlength=len(self.counts))
        again = (picks[:, 1:, :, None] == picks[:, :-1, None, :]).any(-1)[valid[:, 1:] & valid[:, :-1]]
        self.repeated += int(again.sum())
        self.repeatable += again.numel()

    def skew(self, layer: int) -> LayerSkew:
        """The counts as shares."""
        return LayerSkew(
            layer=layer,
            top_10_percent_share=top_share(self.counts),
            gini=gini(self.counts),
            unused_experts=int((self.counts == 0).sum()),
            repeat_rate=self.repeated / self.repeatable,
        )
