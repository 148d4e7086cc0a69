"""A dense feed-forward block partitioned into experts that together compute the same function."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from workloads.smollm2 import routers


@dataclass
class DenseFFN:
    """Weights of one SwiGLU block: ``gate`` and ``up`` [I, H], ``down`` [H, I], float32."""

    gate: Tensor
    up: Tensor
    down: Tensor

    def neurons(self, x: Tensor) -> Tensor:
        """Activations of the intermediate neurons: [T, H] -> [T, I]."""
        return F.silu(x @ self.gate.T) * (x @ self.up.T)

    def __call__(self, x: Tensor) -> Tensor:
        """[T, H] -> [T, H]."""
        return self.neurons(x) @ self.down.T


@dataclass
class ExpertWeights:
    """Experts in transformers' layout: ``router`` [E, H], ``gate_up_proj`` [E, 2W, H], ``down_proj`` [E, H, W].

    Routing as in Mixtral: softmax over the logits, the top K experts, their weights normalised to sum to 1.
    """

    router: Tensor
    gate_up_proj: Tensor
    down_proj: Tensor

    @property
    def num_experts(self) -> int:
        return self.router.shape[0]


def partition(activations: Tensor, shards: int, generator: torch.Generator) -> Tensor:
    """Partition the neurons into ``shards`` sets of equal size that tend to be active together: [shards, I / shards].

    Balanced k-means over the magnitudes of the neurons' activations ([T, I], T inputs): each neuron goes to the nearest
    shard that is not full, the clearest choices first.

    Raises:
        ValueError: the number of neurons is not divisible by ``shards``.
    """
    count = activations.shape[1]
    if count % shards:
        raise ValueError(f"{count} neurons cannot be split into {shards} experts of equal width: choose a divisor")
    if shards == 1:
        return torch.arange(count)[None]
    profile = F.normalize(activations.abs().float().T, dim=1)  # [I, T]
    centres = routers.spread_out(profile, shards, generator)
    for _ in range(8):
        similarity = profile @ centres.T  # [I, shards]
        members = _fill(similarity, count // shards)
        centres = F.normalize(torch.stack([profile[m].mean(0) for m in members]), dim=1)
    return members


def _fill(similarity: Tensor, capacity: int) -> Tensor:
    """Assign each row to the most similar column below ``capacity``, rows with the clearest choice first."""
    best_two = similarity.topk(2, dim=1).values
    order = (best_two[:, 0] - best_two[:, 1]).argsort(descending=True)
    preferred = similarity.argsort(dim=1, descending=True).tolist()
    placed: list[list[int]] = [[] for _ in range(similarity.shape[1])]
    for row in order.tolist():
        for column in preferred[row]:
            if len(placed[column]) < capacity:
                placed[column].append(row)
                break
    return torch.tensor([sorted(rows) for rows in placed])


def upcycled(ffn: DenseFFN, members: Tensor, clusters: int) -> tuple[Tensor, Tensor]:
    """Copy the shards of ``members`` [shards, W] once per cluster; expert ``c * shards + s`` is shard s of cluster c.

    The weights of a token's experts sum to 1, so ``down`` is multiplied by the number of shards: with equal weights, a
    cluster's experts compute exactly the dense block.  Returns ``gate_up_proj`` and ``down_proj``.
    """
    shards = members.shape[0]
    gate_up = torch.stack([torch.cat([ffn.gate[m], ffn.up[m]]) for m in members])  # [shards, 2W, H]
    down = torch.stack([ffn.down[:, m] * shards for m in members])  # [shards, H, W]
    return gate_up.repeat(clusters, 1, 1), down.repeat(clusters, 1, 1)


def usage(ffn: DenseFFN, inputs: Iterable[Tensor]) -> Tensor:
    """Mean square contribution of each neuron to the block's output on ``inputs`` (chunks of [T, H]): [I]."""
    total, rows = torch.zeros(ffn.gate.shape[0]), 0
    for chunk in inputs:
        total += ffn.neurons(chunk).float().square().sum(0)
        rows += len(chunk)
    return total / max(rows, 1) * ffn.down.square().sum(0)


def regrow(
    gate_up: Tensor, down: Tensor, contribution: Tensor, members: Tensor, share: float, generator: torch.Generator
) -> None:
    """Reinitialise an expert's least used neurons in place, as free capacity for its cluster.

    ``contribution`` [clusters, I] ranks the dense neurons on each cluster's inputs.  New neurons have random input
    weights (normal, same standard deviation) and zero output weights: the expert starts as a pruned copy.
    """
    shards, width = members.shape
    fresh = int(share * width)
    for expert in range(gate_up.shape[0]):
        cluster, shard = divmod(expert, shards)
        least = contribution[cluster, members[shard]].argsort()[:fresh]
        for rows in (least, least + width):
            deviation = gate_up[expert].std()
            gate_up[expert, rows] = torch.randn(fresh, gate_up.shape[2], generator=generator) * deviation
        down[expert][:, least] = 0
