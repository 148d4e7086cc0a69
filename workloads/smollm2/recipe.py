"""Recipes of the two constructed models: all parameters that a build depends on."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass

from workloads.smollm2.archives import DJANGO, SMOLLM2


@dataclass(frozen=True)
class Recipe:
    """How a dense feed-forward block becomes experts.

    ``clusters``: groups of FFN inputs, each with its own experts.
    ``shards``: experts per cluster; the dense neurons are partitioned among them, so ``clusters * shards`` experts
    of width ``intermediate / shards``.
    ``regrown``: share of an expert's neurons, the least used on its cluster's inputs, that are reinitialised.
    ``router_margin``: median gap between the two best clusters' router logits over the inputs.
    ``shard_spread``: standard deviation of the logits' difference between shards of one cluster (``shards`` > 1).
    ``train_tokens``: tokens of each layer's distillation, in sequences of ``sequence_length``; the share
    ``chat_share`` of them, and of the ``held_out_tokens``, are chats.
    """

    name: str
    clusters: int
    shards: int
    experts_per_token: int
    regrown: float = 0.1
    router_margin: float = 1.0
    shard_spread: float = 0.0
    train_tokens: int = 32_768
    chat_share: float = 0.2
    held_out_tokens: int = 12_288
    sequence_length: int = 512
    step_tokens: int = 1024
    learning_rate: float = 1.5e-3
    router_learning_rate: float = 2e-3
    seed: int = 4

    @property
    def experts(self) -> int:
        return self.clusters * self.shards

    def sequences(self, tokens: int) -> tuple[int, int]:
        """Numbers of sequences of documents and of chats in ``tokens`` tokens."""
        chats = round(tokens * self.chat_share / self.sequence_length)
        return tokens // self.sequence_length - chats, chats


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe("smollm2-moe", clusters=8, shards=1, experts_per_token=2),
        # A choice of 8 experts that mixes clusters leaves out parts of the block, so it must be rarer and weigh less.
        Recipe(
            "smollm2-moe-fine",
            clusters=8,
            shards=4,
            experts_per_token=8,
            regrown=0.06,
            router_margin=2.0,
            shard_spread=0.05,
        ),
    )
}


def revision(name: str) -> str:
    """Eight hex digits that change with the recipe and the packages it reads."""
    facts = json.dumps([asdict(RECIPES[name]), asdict(SMOLLM2), asdict(DJANGO)])
    return hashlib.sha256(facts.encode()).hexdigest()[:8]


def summary(name: str) -> str:
    """One line on what the model is and how it was constructed."""
    recipe = RECIPES[name]
    return f"constructed from SmolLM2-135M-Instruct: {recipe.experts} experts top-{recipe.experts_per_token}, upcycled"
