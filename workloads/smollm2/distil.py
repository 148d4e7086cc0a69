"""One layer's experts: initialised from the dense block, then distilled from the dense model."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workloads.smollm2 import routers, upcycle
from workloads.smollm2.recipe import Recipe
from workloads.smollm2.streams import Task
from workloads.smollm2.upcycle import DenseFFN, ExpertWeights
from workloads.train.sorted_experts import sorted_experts_forward

CLUSTERED_INPUTS = 16_384
PROFILED_INPUTS = 2_048
WARMUP_SHARE = 0.1


@dataclass
class LayerReport:
    """Relative squared error (error over target, summed over tokens) on held-out text before and after training."""

    error_before: float
    error_after: float


class ExpertsLayer(nn.Module):
    """Router and experts of one layer as trainable float32 parameters; computes in bfloat16."""

    def __init__(self, weights: ExpertWeights, experts_per_token: int) -> None:
        super().__init__()
        self.num_experts = weights.num_experts
        self.experts_per_token = experts_per_token
        self.router = nn.Parameter(weights.router.float())
        self.gate_up_proj = nn.Parameter(weights.gate_up_proj.float())
        self.down_proj = nn.Parameter(weights.down_proj.float())

    def forward(self, x: Tensor) -> Tensor:
        """[T, H] -> [T, H]: the top K experts, weighted by the softmax of their logits (as in Mixtral)."""
        best = (x.float() @ self.router.T).topk(self.experts_per_token, dim=-1)
        return sorted_experts_forward(self, x, best.indices, best.values.softmax(-1))

    def weights(self) -> ExpertWeights:
        return ExpertWeights(self.router.data, self.gate_up_proj.data, self.down_proj.data)


@torch.no_grad()
def start(ffn: DenseFFN, inputs: Tensor, recipe: Recipe, generator: torch.Generator) -> ExpertWeights:
    """Experts and router of one layer before training, from the dense block and its ``inputs`` [T, H]."""
    sample = inputs[torch.randperm(len(inputs), generator=generator)[:CLUSTERED_INPUTS]].float()
    centroids = routers.cluster(sample, recipe.clusters, generator)
    router = routers.from_centroids(centroids, sample, recipe.router_margin)
    profiled = ffn.neurons(sample[:PROFILED_INPUTS])
    members = upcycle.partition(profiled, recipe.shards, generator)
    strengths = torch.stack([(profiled[:, m] @ ffn.down[:, m].T).norm(dim=1) for m in members], dim=1)
    router = routers.with_shards(router, sample[:PROFILED_INPUTS], strengths, recipe.shard_spread)
    gate_up, down = upcycle.upcycled(ffn, members, recipe.clusters)
    nearest = (sample @ centroids.T).argmax(dim=1)
    contribution = torch.stack([upcycle.usage(ffn, sample[nearest == c].split(4096)) for c in range(recipe.clusters)])
    upcycle.regrow(gate_up, down, contribution, members, recipe.regrown, generator)
    return ExpertWeights(router, gate_up, down)


def train(layer: ExpertsLayer, task: Task, held_out: Task, recipe: Recipe, generator: torch.Generator) -> LayerReport:
    """One pass over ``task`` with AdamW and cosine decay; each token's error is relative to its target's size."""
    before = error(layer, held_out)
    optimiser = torch.optim.AdamW(
        [
            {"params": [layer.gate_up_proj, layer.down_proj], "lr": recipe.learning_rate},
            {"params": [layer.router], "lr": recipe.router_learning_rate},
        ],
        betas=(0.9, 0.98),
        weight_decay=0.0,
        fused=True,
    )
    batches = torch.randperm(len(task.inputs), generator=generator).split(recipe.step_tokens)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate(step, len(batches)))
    floor = float(task.targets.square().sum(1).median())
    for rows in batches:
        x, y = task.inputs[rows], task.targets[rows]
        wrong = (layer(x).float() - y).square().sum(1) / (y.square().sum(1) + floor)
        optimiser.zero_grad(set_to_none=True)
        wrong.mean().backward()
        nn.utils.clip_grad_norm_(layer.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    return LayerReport(before, error(layer, held_out))


def _rate(step: int, steps: int) -> float:
    warm = max(1, int(WARMUP_SHARE * steps))
    return (step + 1) / warm if step < warm else 0.5 + 0.5 * math.cos(math.pi * (step - warm) / max(1, steps - warm))


@torch.no_grad()
def error(layer: ExpertsLayer, task: Task) -> float:
    """Squared error over squared target, summed over tokens; without outliers such as first tokens of sequences."""
    out = torch.cat([layer(x) for x in task.inputs.split(4096)]).float()
    size = task.targets.square().sum(1)
    usual = size <= size.quantile(0.99)
    wrong = F.mse_loss(out[usual], task.targets[usual], reduction="sum")
    return float(wrong / size[usual].sum())
