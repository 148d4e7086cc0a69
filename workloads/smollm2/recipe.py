"""What the two constructed models are: shapes, tokens and learning rates.  Everything a build depends on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """How a dense feed-forward block becomes experts.

    ``clusters``: groups of FFN inputs, each with experts of its own.
    ``shards``: experts per cluster; the dense neurons are partitioned among them, so ``clusters * shards`` experts
    of width ``intermediate / shards``.
    ``regrown``: share of an expert's neurons, those least used on its cluster's inputs, that start anew.
    ``router_margin``: median gap between the two best clusters' router logits over the inputs.
    ``shard_spread``: standard deviation of the logits' difference between shards of one cluster (``shards`` > 1).
    ``train_tokens``: tokens of each layer's distillation, in sequences of ``sequence_length``.
    """

    name: str
    clusters: int
    shards: int
    experts_per_token: int
    regrown: float = 0.25
    router_margin: float = 1.0
    shard_spread: float = 0.0
    train_tokens: int = 160_000
    chat_share: float = 0.25
    held_out_tokens: int = 32_768
    sequence_length: int = 512
    step_tokens: int = 2048
    learning_rate: float = 5e-4
    router_learning_rate: float = 1e-3
    seed: int = 4

    @property
    def experts(self) -> int:
        return self.clusters * self.shards


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe("smollm2-moe", clusters=8, shards=1, experts_per_token=2),
        Recipe("smollm2-moe-fine", clusters=8, shards=8, experts_per_token=8, shard_spread=0.3),
    )
}
