"""The recipes: one frozen dataclass per embedded model."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the trained weights, given the corpus.

    Sizes follow transformers' Qwen3-MoE config; ``tokens_per_step = sequences_per_step * sequence_length``.
    """

    name: str = "embedded"
    seed: int = 20260
    vocab_size: int = 4096
    hidden_size: int = 256
    layers: int = 6
    attention_heads: int = 4
    key_value_heads: int = 2
    head_dim: int = 64
    experts: int = 64
    experts_per_token: int = 2
    expert_intermediate_size: int = 40
    max_position_embeddings: int = 1024
    router_aux_loss_coef: float = 0.001
    sequence_length: int = 256
    sequences_per_step: int = 20
    steps: int = 3000
    learning_rate: float = 3e-3
    final_learning_rate: float = 1e-4
    warmup_steps: int = 150
    weight_decay: float = 0.1
    gradient_clip: float = 1.0


RECIPES = {"embedded": Recipe()}
