"""A tiny random model of every Mixture-of-Experts family that the installed transformers generates text with.

A family is a ``model_type``.  ``moe_families`` finds them in transformers' own sources, so a new release brings its new
families by itself; ``build`` makes the model.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES, model_type_to_module_name

VOCAB = 97
_AUTO_CLASSES = {
    modeling_auto.AutoModelForCausalLM: modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    modeling_auto.AutoModelForSeq2SeqLM: modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    modeling_auto.AutoModelForImageTextToText: modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    modeling_auto.AutoModelForMultimodalLM: modeling_auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
}
_COUNT_OF_EXPERTS = re.compile(r"\b(?:moe_num|num|num_local|n_routed|num_routed)_experts\b")
_EXPERTS_CLASS = re.compile(r"^class \w*Experts\b|use_experts_implementation", re.MULTILINE)
_CHECKPOINT = re.compile(r'@auto_docstring\(checkpoint="([^"]+)"')
_MODELS = Path(transformers.__file__).parent / "models"
_LARGEST = 3_000_000  # parameters

# Every config is given those of these values that it has a field for, its parts (text, vision, audio) too.
_SMALL: dict[str, Any] = {
    "vocab_size": VOCAB,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "sliding_window": 8,
    # experts
    "num_experts": 8,
    "num_local_experts": 8,
    "n_routed_experts": 8,
    "moe_num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_topk": 2,
    "moe_k": 2,
    "top_k_experts": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 24,
    "shared_intermediate_size": 24,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    # latent and indexed attention
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "index_head_dim": 16,
    "index_n_heads": 2,
    "index_topk": 4,
    # linear attention and state spaces
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_head_dim": 8,
    "linear_num_heads": 4,
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    # vision and audio towers
    "depth": 1,
    "num_heads": 4,
    "out_hidden_size": 32,
    "text_hidden_size": 32,
    "projector_hidden_size": 32,
}
_VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
_SAM = {
    "image_size": 64,
    "output_channels": 8,
    "downsample_channels": [8, 32],
    "global_attn_indexes": [0],
    "mlp_dim": 48,
}
_LATENT = {"num_key_value_heads": 4}
_MIXED = {"layer_types": ["sliding_attention", "full_attention"] * 2}
_INKLING = {
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 2,
    "swa_head_dim": 8,
    "sliding_window_size": 8,
    "unpadded_vocab_size": VOCAB,
    "rel_extent": 16,
}
_INKLING_2 = _INKLING | {"n_layers_per_attn_res_block": 2, "log_scaling_n_floor": 8}
_GEMMA_4 = {
    "enable_moe_block": True,
    "vocab_size_per_layer_input": VOCAB,
    "hidden_size_per_layer_input": 8,
    **_MIXED,
}

# What else a family, or a part of one, needs.
_OVERRIDES: dict[str, dict[str, Any]] = {
    "aria": {
        "vision_config": {"model_type": "idefics3_vision", **_VISION, "image_size": 28, "patch_size": 14},
        "projector_patch_to_query_dict": {4: 4},
    },
    "axk1": _LATENT,
    "axk2": _LATENT,
    "bailing_hybrid": {**_LATENT, "layer_group_size": 2},
    "dbrx": {
        "d_model": 32,
        "n_heads": 4,
        "n_layers": 2,
        "max_seq_len": 256,
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 16, "moe_num_experts": 8, "moe_top_k": 2},
    },
    "deepseek_v2": _LATENT,
    "deepseek_v3": _LATENT,
    "deepseek_v32": _LATENT,
    "deepseek_v4": {"num_key_value_heads": 1, "o_groups": 2, "o_lora_rank": 16},
    "diffusion_gemma": {"vision_config": {"model_type": "gemma4_vision", **_VISION, "position_embedding_size": 16}},
    "doge": {"is_moe": True},
    "dots1": {"n_shared_experts": 1},
    "dots3_note_text": {
        **_LATENT,
        "layer_types": ["indexed_attention", "sliding_attention"] * 2,
        "swa_head_dim": 16,
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 4,
        "swa_q_lora_rank": 16,
        "swa_kv_lora_rank": 16,
        "swa_qk_nope_head_dim": 8,
        "swa_v_head_dim": 8,
    },
    "gemma4": {"audio_config": None},
    "gemma4_text": _GEMMA_4,
    "glm4_moe_lite": _LATENT,
    "glm5_next_text": {**_LATENT, "index_topk": 16, "qk_rope_head_dim": 0},
    "glm_moe_dsa": _LATENT,
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 2},
    "hy_v4": _LATENT,
    "hy_v4_vl_text": {
        **_LATENT,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]},
    },
    "inkling2_loop": {"vision_config": {"model_type": "inkling2_vision", **_VISION, "text_hidden_size": 32}},
    "inkling2_loop_text": {
        **_INKLING_2,
        "num_hidden_layers": 6,
        "loop_layer_index_start": 2,
        "loop_layer_index_end": 4,
        "loop_gate_rank": 8,
    },
    "inkling2_text": _INKLING_2,
    "inkling_audio": {"n_mel_bins": 8, "mel_vocab_size": 8},
    "inkling_text": _INKLING,
    "inkling_vision": {"patch_size": 8},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 8},
    "kimi_linear": _LATENT,
    "kolibri1": _MIXED,
    "laguna": _MIXED,
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "llama4_text": {"intermediate_size_mlp": 48, "attention_chunk_size": 8, "num_experts_per_tok": 1},
    "longcat_flash": {
        **_LATENT,
        "num_layers": 2,
        "ffn_hidden_size": 48,
        "expert_ffn_hidden_size": 16,
        "zero_expert_num": 4,
    },
    "nemotron_h": {
        "layers_block_type": ["mamba", "moe", "attention", "moe"],
        "ssm_state_size": 8,
        "mamba_num_heads": 8,
        "mamba_head_dim": 8,
        "n_groups": 2,
        "moe_shared_expert_intermediate_size": 24,
    },
    "nllb-moe": {
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_sparse_step": 2,
        "decoder_sparse_step": 2,
    },
    "mellum": _MIXED,
    "minimax_m3_vl_text": {
        "layer_types": ["full_attention", "minimax_m3_sparse"] * 2,
        "index_block_size": 4,
        "index_topk_blocks": 2,
    },
    "mistral_large4": {"vision_config": {"model_type": "pixtral", **_VISION, "image_size": 28, "patch_size": 14}},
    "mistral_large4_text": _LATENT,
    "muse_spark_audio": {"hidden_sizes": [8, 8, 8, 32], "depths": [1, 1, 1, 1]},
    "muse_spark_text": {"moe_hidden_size": 32},
    "qwen3_omni_moe_audio_encoder": {
        "d_model": 32,
        "encoder_layers": 1,
        "encoder_attention_heads": 4,
        "encoder_ffn_dim": 48,
        "output_dim": 32,
        "downsample_hidden_size": 8,
    },
    "qwen4_exp_text": {
        "hc_lowrank": 8,
        "ngram_vocab_size_base": 101,
        "make_ngram_vocab_size_divisible_by": 1,
        "split_ngram_parts": 1,
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 4,
        "indexer_compress_ratio": 2,
    },
    "sarvam_mla": _LATENT,
    "switch_transformers": {
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 48,
        "num_layers": 2,
        "num_decoder_layers": 2,
        "num_heads": 4,
        "num_sparse_encoder_layers": 1,
        "num_sparse_decoder_layers": 1,
    },
    "unlimited_ocr_sam_vision_model": _SAM,
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 16},
}


@cache
def moe_families() -> tuple[str, ...]:
    """Every ``model_type`` whose sources define or count experts and that an auto class generates text with."""
    generating = {model_type for names in _AUTO_CLASSES.values() for model_type in names}
    return tuple(sorted(t for t in CONFIG_MAPPING_NAMES if t in generating and _has_experts(t)))


def _has_experts(model_type: str) -> bool:
    return bool(
        _COUNT_OF_EXPERTS.search(_source(model_type, "configuration"))
        or _EXPERTS_CLASS.search(_source(model_type, "modeling"))
    )


def _source(model_type: str, kind: str) -> str:
    folder = _MODELS / model_type_to_module_name(model_type)
    return "\n".join(path.read_text() for path in sorted(folder.glob(f"{kind}_*.py")))


def example_checkpoint(model_type: str) -> str:
    """The checkpoint that transformers' documentation of the family's config names, or an empty text."""
    found = _CHECKPOINT.search(_source(model_type, "configuration"))
    return found[1] if found else ""


def auto_class(model_type: str) -> Any:
    """The auto class that loads a family for generation: causal, encoder-decoder or a multimodal wrapper."""
    return next(auto for auto, names in _AUTO_CLASSES.items() if model_type in names)


def tiny_config(model_type: str) -> PreTrainedConfig:
    """The config of a family's tiny model."""
    config_class = CONFIG_MAPPING[model_type]
    return config_class(**_small(config_class))


def _small(config_class: type[PreTrainedConfig]) -> dict[str, Any]:
    """The values of a config class that make its model small, and those of each of its parts."""
    fields = set(_fields(config_class))
    values = {name: value for name, value in _SMALL.items() if name in fields}
    parts = {name: part for name, part in config_class.sub_configs.items() if part is not AutoConfig}
    values |= {name: _small(part) for name, part in parts.items()}
    return _merged(values, _OVERRIDES.get(config_class.model_type, {}))


def _fields(config_class: type[PreTrainedConfig]) -> Iterator[str]:
    for base in config_class.__mro__:
        if base.__module__.startswith("transformers.models."):
            yield from getattr(base, "__annotations__", {})


def _merged(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """``values`` with ``changes``, part by part."""
    return values | {
        name: _merged(values[name], change) if isinstance(change, dict) and name in values else change
        for name, change in changes.items()
    }


def build(model_type: str, folder: Path) -> PreTrainedModel:
    """A random float32 model of a family, saved to ``folder``.

    Every parameter and every saved buffer is random, so that one that is loaded wrongly changes the tokens.
    """
    torch.manual_seed(sum(model_type.encode()))
    model: PreTrainedModel = auto_class(model_type).from_config(tiny_config(model_type)).float().eval()
    if (size := model.num_parameters()) > _LARGEST:
        raise ValueError(f"the model of {model_type} has {size} parameters: add small values to _OVERRIDES")
    saved = model.state_dict(keep_vars=True)
    with torch.no_grad():
        for tensor in saved.values():
            if isinstance(tensor, torch.nn.Parameter) and tensor.ndim > 1:
                tensor.normal_(std=0.3)
            elif tensor.is_floating_point():
                tensor.add_(torch.randn_like(tensor) * 0.1)
    model.tie_weights()
    model.save_pretrained(folder)
    return model


def save_config(model_type: str, folder: Path) -> None:
    """A family's default config and a nearly empty checkpoint: enough for a refusal that needs the config alone."""
    CONFIG_MAPPING[model_type]().save_pretrained(folder)
    save_file({"lm_head.weight": torch.zeros(VOCAB, 32)}, folder / "model.safetensors", metadata={"format": "pt"})
