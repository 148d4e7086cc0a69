"""Distances between a layer's experts, and the skew of its router."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from workloads.model_card import LayerSkew
from workloads.smollm2.distil import ExpertsLayer
from workloads.train.routing import describe

COMPARED_INPUTS = 512


@dataclass(frozen=True)
class Distance:
    """Means over pairs of experts that began as copies of the same neurons (all pairs where ``shards`` is 1).

    ``weight_relative_l2``: distance of the weights over their root mean square norm; ``weight_cosine``: 1 minus their
    cosine; ``output_relative_l2``: as the first, of both outputs for the same held-out inputs.
    """

    weight_relative_l2: float
    weight_cosine: float
    output_relative_l2: float


@torch.no_grad()
def distance(layer: ExpertsLayer, inputs: Tensor, shards: int) -> Distance:
    """Compare the experts by weights and by outputs on ``inputs`` [T, H]."""
    stride = max(1, len(inputs) // COMPARED_INPUTS)
    x = inputs[::stride].float()
    gate, up = (x @ layer.gate_up_proj.transpose(1, 2)).chunk(2, dim=-1)  # [E, T, W] each
    outputs = (torch.nn.functional.silu(gate) * up) @ layer.down_proj.transpose(1, 2)  # [E, T, H]
    weights = torch.cat([layer.gate_up_proj.flatten(1), layer.down_proj.flatten(1)], dim=1)
    by_weight, cosine = _pairwise(weights, shards)
    by_output, _ = _pairwise(outputs.flatten(1), shards)
    return Distance(by_weight, cosine, by_output)


def _pairwise(rows: Tensor, shards: int) -> tuple[float, float]:
    """Mean relative distance and mean cosine distance over pairs i < j of [E, N] with the same shard."""
    gram = (rows @ rows.T).double()
    squares = gram.diagonal()
    apart = (squares[:, None] + squares[None] - 2 * gram).clamp_min(0).sqrt()
    relative = apart / ((squares[:, None] + squares[None]) / 2).sqrt()
    cosine = 1 - gram / (squares[:, None] * squares[None]).sqrt()
    index = torch.arange(len(rows))
    chosen = (index[:, None] < index[None]) & (index[:, None] % shards == index[None] % shards)
    return float(relative[chosen].mean()), float(cosine[chosen].mean())


@torch.no_grad()
def picks(layer: ExpertsLayer, inputs: Tensor) -> Tensor:
    """The experts of each input, [T, H] -> [T, K]."""
    return (inputs.float() @ layer.router.T).topk(layer.experts_per_token, dim=-1).indices


def skew(layer: int, chosen: Tensor, sequence_length: int, experts: int) -> LayerSkew:
    """Routing of held-out text, ``chosen`` [T, K] with T a whole number of sequences."""
    return describe(layer, chosen.view(-1, sequence_length, chosen.shape[-1]), experts)


def whole_clusters_share(chosen: Tensor, clusters: int, shards: int) -> float:
    """Share of inputs whose experts (``chosen``, [T, K]) are exactly all shards of some clusters."""
    counts = torch.zeros(len(chosen), clusters, dtype=torch.long)
    counts.scatter_add_(1, chosen // shards, torch.ones_like(chosen))
    return float(((counts == 0) | (counts == shards)).all(dim=1).float().mean())
