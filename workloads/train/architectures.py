"""The transformers model of a recipe, with fresh weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    GenerationConfig,
    Llama4ForCausalLM,
    Llama4TextConfig,
    MixtralConfig,
    MixtralForCausalLM,
    NllbMoeConfig,
    NllbMoeForConditionalGeneration,
    PreTrainedModel,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from workloads.train import pairs, paper_classes, sorted_experts
from workloads.train.recipe import Architecture, Recipe


def build_model(recipe: Recipe) -> PreTrainedModel:
    """The recipe's model with freshly initialised float32 weights, its experts in the training formulation."""
    torch.manual_seed(recipe.seed)
    return _FAMILIES[recipe.architecture](recipe)


def load_trained(recipe: Recipe, folder: Path) -> PreTrainedModel:
    """The trained weights in ``folder`` in their own class, float32, with the routing that they were trained with."""
    auto = AutoModelForSeq2SeqLM if recipe.encoder_layers else AutoModelForCausalLM
    model: PreTrainedModel = auto.from_pretrained(folder, dtype=torch.float32).eval()
    return paper_classes.with_published_routing(model) if recipe.architecture == "nllb_moe" else model


def generation_config(recipe: Recipe) -> GenerationConfig:
    """The defaults of ``generate``: end and padding tokens; for NLLB-MoE French as its first token, and its length."""
    if recipe.architecture != "nllb_moe":
        return GenerationConfig(bos_token_id=0, eos_token_id=0, pad_token_id=0)
    return GenerationConfig(
        bos_token_id=0,
        eos_token_id=pairs.EOS_ID,
        pad_token_id=pairs.PAD_ID,
        decoder_start_token_id=pairs.EOS_ID,
        forced_bos_token_id=pairs.TARGET_LANGUAGE_ID,
        max_length=200,
    )


def _qwen3(recipe: Recipe) -> PreTrainedModel:
    return _sorted(
        Qwen3MoeForCausalLM(
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
    )


def _qwen2(recipe: Recipe) -> PreTrainedModel:
    """With one expert per token its weight is not normalised, or the router would get no gradient."""
    _without(recipe, "head_dim", recipe.head_dim * recipe.attention_heads != recipe.hidden_size)
    return _sorted(
        Qwen2MoeForCausalLM(
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
    )


def _mixtral(recipe: Recipe) -> PreTrainedModel:
    _without(recipe, "sparse_step", recipe.sparse_step != 1)
    _without(recipe, "shared_expert_intermediate_size", recipe.shared_expert_intermediate_size != 0)
    return _sorted(
        MixtralForCausalLM(
            MixtralConfig(
                **_common(recipe),
                head_dim=recipe.head_dim,
                intermediate_size=recipe.expert_intermediate_size,
                num_local_experts=recipe.experts,
                rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
            )
        )
    )


def _nllb_moe(recipe: Recipe) -> PreTrainedModel:
    """Without dropout of any kind: a step sees new text; experts have no capacity limit in evaluation."""
    _without(recipe, "head_dim", recipe.head_dim * recipe.attention_heads != recipe.hidden_size)
    _without(recipe, "key_value_heads", recipe.key_value_heads != recipe.attention_heads)
    _without(recipe, "experts_per_token", recipe.experts_per_token != 2)
    _without(recipe, "dense_intermediate_size", recipe.dense_intermediate_size != recipe.expert_intermediate_size)
    config = NllbMoeConfig(
        vocab_size=recipe.vocab_size,
        d_model=recipe.hidden_size,
        encoder_layers=recipe.encoder_layers,
        decoder_layers=recipe.layers - recipe.encoder_layers,
        encoder_sparse_step=recipe.sparse_step,
        decoder_sparse_step=recipe.sparse_step,
        encoder_attention_heads=recipe.attention_heads,
        decoder_attention_heads=recipe.attention_heads,
        encoder_ffn_dim=recipe.expert_intermediate_size,
        decoder_ffn_dim=recipe.expert_intermediate_size,
        num_experts=recipe.experts,
        expert_capacity=recipe.expert_capacity,
        max_position_embeddings=recipe.max_position_embeddings,
        router_aux_loss_coef=recipe.router_aux_loss_coef,
        init_std=recipe.hidden_size**-0.5,  # embeddings are multiplied by its inverse, and then near 1
        moe_eval_capacity_token_fraction=1.0,
        moe_token_dropout=0.0,
        dropout=0.0,
        attention_dropout=0.0,
        encoder_layerdrop=0.0,
        decoder_layerdrop=0.0,
        bos_token_id=0,
        pad_token_id=pairs.PAD_ID,
        eos_token_id=pairs.EOS_ID,
        decoder_start_token_id=pairs.EOS_ID,
        experts_follow_router=True,
    )
    return paper_classes.with_published_routing(NllbMoeForConditionalGeneration(config))


def _llama4(recipe: Recipe) -> PreTrainedModel:
    _without(recipe, "sparse_step", recipe.sparse_step != 1)
    narrow = recipe.shared_expert_intermediate_size != recipe.expert_intermediate_size
    _without(recipe, "shared_expert_intermediate_size", narrow)
    config = Llama4TextConfig(
        **_common(recipe),
        head_dim=recipe.head_dim,
        intermediate_size=recipe.expert_intermediate_size,
        intermediate_size_mlp=recipe.expert_intermediate_size,
        num_local_experts=recipe.experts,
        attention_chunk_size=recipe.attention_chunk_size,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
    )
    return paper_classes.with_sorted_experts(Llama4ForCausalLM(config))


_FAMILIES: dict[Architecture, Callable[[Recipe], PreTrainedModel]] = {
    "qwen3_moe": _qwen3,
    "qwen2_moe": _qwen2,
    "mixtral": _mixtral,
    "nllb_moe": _nllb_moe,
    "llama4": _llama4,
}


def _sorted(model: PreTrainedModel) -> PreTrainedModel:
    """The model with its experts in the training formulation, through transformers' experts interface."""
    model.set_experts_implementation(sorted_experts.register())
    return model


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
