"""The transformers model of a recipe, with fresh weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from workloads.train import sorted_experts
from workloads.train.recipe import Architecture, Recipe


def build_model(recipe: Recipe) -> PreTrainedModel:
    """The recipe's model with freshly initialised float32 weights, its experts in the training formulation."""
    torch.manual_seed(recipe.seed)
    model = _FAMILIES[recipe.architecture](recipe)
    model.set_experts_implementation(sorted_experts.register())
    return model


def _qwen3(recipe: Recipe) -> PreTrainedModel:
    return Qwen3MoeForCausalLM(
        Qwen3MoeConfig(
            **_common(recipe),
            head_dim=recipe.head_dim,
            intermediate_size=recipe.dense_intermediate_size,
            decoder_sparse_step=recipe.sparse_step,
            num_experts=recipe.experts,
            moe_intermediate_size=recipe.expert_intermediate_size,
            norm_topk_prob=True,
        )
    )


def _qwen2(recipe: Recipe) -> PreTrainedModel:
    """With one expert per token its weight is not normalised, or the router would get no gradient."""
    _without(recipe, "head_dim", recipe.head_dim * recipe.attention_heads != recipe.hidden_size)
    return Qwen2MoeForCausalLM(
        Qwen2MoeConfig(
            **_common(recipe),
            intermediate_size=recipe.dense_intermediate_size,
            decoder_sparse_step=recipe.sparse_step,
            num_experts=recipe.experts,
            moe_intermediate_size=recipe.expert_intermediate_size,
            shared_expert_intermediate_size=recipe.shared_expert_intermediate_size,
            norm_topk_prob=recipe.experts_per_token > 1,
        )
    )


def _mixtral(recipe: Recipe) -> PreTrainedModel:
    _without(recipe, "sparse_step", recipe.sparse_step != 1)
    _without(recipe, "shared_expert_intermediate_size", recipe.shared_expert_intermediate_size != 0)
    return MixtralForCausalLM(
        MixtralConfig(
            **_common(recipe),
            head_dim=recipe.head_dim,
            intermediate_size=recipe.expert_intermediate_size,
            num_local_experts=recipe.experts,
            rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        )
    )


_FAMILIES: dict[Architecture, Callable[[Recipe], PreTrainedModel]] = {
    "qwen3_moe": _qwen3,
    "qwen2_moe": _qwen2,
    "mixtral": _mixtral,
}


def _common(recipe: Recipe) -> dict[str, Any]:
    return {
        "vocab_size": recipe.vocab_size,
        "hidden_size": recipe.hidden_size,
        "num_hidden_layers": recipe.layers,
        "num_attention_heads": recipe.attention_heads,
        "num_key_value_heads": recipe.key_value_heads,
        "num_experts_per_tok": recipe.experts_per_token,
        "max_position_embeddings": recipe.max_position_embeddings,
        "router_aux_loss_coef": recipe.router_aux_loss_coef,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 0,
    }


def _without(recipe: Recipe, field: str, given: bool) -> None:
    if given:
        raise ValueError(f"recipe {recipe.name!r}: {recipe.architecture} cannot have {field}={getattr(recipe, field)}")
