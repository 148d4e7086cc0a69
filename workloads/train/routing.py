"""Skew of a model's routing on held-out text, as reported in the model card."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from workloads.model_card import LayerSkew
from workloads.skew import gini, top_share


@torch.no_grad()
def measure_skew(
    model: PreTrainedModel, tokens: NDArray[np.uint16], sequences: int = 64, length: int = 256
) -> list[LayerSkew]:
    """Route ``sequences`` evenly spaced windows of ``tokens`` and describe every MoE layer."""
    starts = np.linspace(0, len(tokens) - length - 1, sequences).astype(int)
    batch = torch.from_numpy(np.stack([tokens[s : s + length] for s in starts]).astype(np.int64))
    top_k = model.config.num_experts_per_tok
    picks: list[torch.Tensor] = []  # per layer: [sequences, length, K]
    for rows in batch.split(16):
        logits = model(rows, use_cache=False, output_router_logits=True).router_logits
        chosen = [layer.topk(top_k, dim=-1).indices.view(len(rows), length, top_k) for layer in logits]
        picks = [torch.cat(pair) for pair in zip(picks, chosen, strict=True)] if picks else chosen
    layers = [layer for layer, block in enumerate(model.model.layers) if hasattr(block.mlp, "experts")]
    return [describe(layer, pick, model.config.num_experts) for layer, pick in zip(layers, picks, strict=True)]


def describe(layer: int, picks: torch.Tensor, experts: int) -> LayerSkew:
    """The skew of one layer's ``picks`` [sequences, length, K] among ``experts``."""
    counts = torch.bincount(picks.flatten(), minlength=experts)
    repeated = (picks[:, 1:, :, None] == picks[:, :-1, None, :]).any(-1).float().mean()
    return LayerSkew(
        layer=layer,
        top_10_percent_share=top_share(counts),
        gini=gini(counts),
        unused_experts=int((counts == 0).sum()),
        repeat_rate=float(repeated),
    )
