"""The recipes: one frozen dataclass per trained model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Architecture = Literal["qwen3_moe", "qwen2_moe", "mixtral", "nllb_moe", "llama4"]


@dataclass(frozen=True)
class Recipe:
    """Everything that determines the trained weights, given the text.

    Sizes follow transformers' configs.  Every ``sparse_step``-th layer has experts, the others are dense with
    ``dense_intermediate_size``; ``shared_expert_intermediate_size`` is Qwen2-MoE's shared expert.  ``data`` names a
    source of ``workloads.train.sources`` and ``data_sha256`` is the text's checksum when the committed weights were
    trained.  Where documents have tags, tokens before the target's tag have weight ``source_loss_weight`` in the loss.
    ``tokens_per_step = sequences_per_step * sequence_length``.  The learning rate stays at its height until the share
    ``plateau`` of the steps, and then falls by a cosine.  With a ``restart_step`` this schedule ends there, and the
    rate starts again at half its height and falls by a cosine until the last step.

    NLLB-MoE: the first ``encoder_layers`` of the layers are the encoder's, ``expert_intermediate_size`` is also the
    dense layers' width, an expert takes at most ``expert_capacity`` tokens of a training step, and a step has
    ``sequences_per_step`` pairs of at most ``sequence_length`` tokens on each side.  Llama 4: layers with rotary
    positions attend within chunks of ``attention_chunk_size`` tokens, and the shared expert is as wide as the others.
    """

    name: str = "embedded"
    summary: str = "a small Qwen3-MoE trained from scratch"
    architecture: Architecture = "qwen3_moe"
    data: str = "standard-library"
    data_sha256: str = "cd4c6d4f755e7c365b3c548447ac07f10fbf89f5f1beee522e1809c080304161"
    seed: int = 20260
    vocab_size: int = 4096
    hidden_size: int = 256
    layers: int = 6
    sparse_step: int = 1
    dense_intermediate_size: int = 1024
    attention_heads: int = 4
    key_value_heads: int = 2
    head_dim: int = 64
    experts: int = 64
    experts_per_token: int = 2
    expert_intermediate_size: int = 40
    shared_expert_intermediate_size: int = 0
    max_position_embeddings: int = 1024
    router_aux_loss_coef: float = 0.001
    source_loss_weight: float = 1.0
    encoder_layers: int = 0
    expert_capacity: int = 0
    attention_chunk_size: int = 0
    sequence_length: int = 256
    sequences_per_step: int = 20
    steps: int = 3000
    learning_rate: float = 3e-3
    final_learning_rate: float = 1e-4
    warmup_steps: int = 150
    plateau: float = 0.0
    restart_step: int = 0
    weight_decay: float = 0.1
    gradient_clip: float = 1.0


EMBEDDED = Recipe()

NLLB_LIKE = Recipe(
    name="nllb-like",
    summary="a translator from English to French after NLLB-MoE's geometry",
    data="french-catalogues",
    data_sha256="106b398eff791b1f7d51eb14422f41b66b1d8e3a930cd3479d9b24e46bb43095",
    vocab_size=6144,
    hidden_size=160,
    layers=8,
    sparse_step=4,
    dense_intermediate_size=192,
    head_dim=40,
    experts=128,
    expert_intermediate_size=44,
    source_loss_weight=0.2,
    sequences_per_step=10,
    steps=2200,
    learning_rate=2.5e-3,
    warmup_steps=100,
)

_SHORT = Recipe(hidden_size=192, head_dim=48, sequences_per_step=10, steps=1000, warmup_steps=100)

SCOUT_LIKE = replace(
    _SHORT,
    name="scout-like",
    summary="one expert of 16 per token beside a shared one, after Llama-4-Scout's geometry",
    architecture="qwen2_moe",
    data="python-documentation",
    data_sha256="cafd6361ac93bc26e089ea8c22449987a94e146362654cf5d9be4e28366703e7",
    experts=16,
    experts_per_token=1,
    expert_intermediate_size=32,
    shared_expert_intermediate_size=96,
)

MIXTRAL_LIKE = replace(
    _SHORT,
    name="mixtral-like",
    summary="two experts of 8 per token in every layer, Mixtral's own architecture",
    architecture="mixtral",
    experts=8,
    experts_per_token=2,
    expert_intermediate_size=72,
)

NLLB_MOE_LIKE = replace(
    NLLB_LIKE,
    name="nllb-moe-like",
    summary="a translator from English to French in NLLB-MoE's own architecture",
    architecture="nllb_moe",
    vocab_size=3072,
    encoder_layers=4,
    dense_intermediate_size=64,
    key_value_heads=4,
    expert_intermediate_size=64,
    expert_capacity=64,
    router_aux_loss_coef=0.005,
    source_loss_weight=0.0,
    sequence_length=64,
    sequences_per_step=64,
    steps=2300,
    plateau=0.5,
    restart_step=1500,
    weight_decay=0.02,
)

LLAMA4_LIKE = replace(
    SCOUT_LIKE,
    name="llama4-like",
    summary="one expert of 16 per token beside a shared one, Llama 4's own architecture",
    architecture="llama4",
    layers=8,
    shared_expert_intermediate_size=32,
    attention_chunk_size=64,
    router_aux_loss_coef=0.01,
    sequences_per_step=5,
    steps=1600,
    learning_rate=2.5e-3,
    plateau=0.6,
)

RECIPES = {
    recipe.name: recipe for recipe in (EMBEDDED, NLLB_LIKE, SCOUT_LIKE, MIXTRAL_LIKE, NLLB_MOE_LIKE, LLAMA4_LIKE)
}
