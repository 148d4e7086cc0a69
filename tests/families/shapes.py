"""Config values that make each family's model tiny, and the variants of families that are tested too."""

from __future__ import annotations

from typing import Any

VOCAB = 97

# Every config is given those of these values that it has a field for, its parts (text, vision, audio) too.
SMALL: dict[str, Any] = {
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


def _mrope(*sections: int) -> dict[str, Any]:
    """Rotary positions in three dimensions with this many frequencies each."""
    return {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": list(sections)}


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
OVERRIDES: dict[str, dict[str, Any]] = {
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
    "ernie4_5_vl_moe_text": {"moe_intermediate_size": [16, 16], "rope_parameters": _mrope(1, 1, 2)},
    "gemma4": {"audio_config": None},
    "gemma4_text": _GEMMA_4,
    "glm4_moe_lite": _LATENT,
    "glm4v_moe_text": {"head_dim": 16, "rope_parameters": {**_mrope(2, 1, 1), "partial_rotary_factor": 0.5}},
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
        "tie_word_embeddings": False,  # tied ones make it repeat itself
    },
    "mellum": _MIXED,
    "minimax_m3_vl_text": {
        "layer_types": ["full_attention", "minimax_m3_sparse"] * 2,
        "index_block_size": 4,
        "index_topk_blocks": 2,
    },
    "mistral4": {
        **_LATENT,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 32.0,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "original_max_position_embeddings": 8,
            "llama_4_scaling_beta": 0.5,
        },
    },
    "mistral_large4": {"vision_config": {"model_type": "pixtral", **_VISION, "image_size": 28, "patch_size": 14}},
    "mistral_large4_text": _LATENT,
    "muse_spark_audio": {"hidden_sizes": [8, 8, 8, 32], "depths": [1, 1, 1, 1]},
    "muse_spark_text": {"moe_hidden_size": 32},
    "qwen3_vl_moe_text": {"rope_parameters": _mrope(2, 1, 1)},
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

_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 4,
    "long_factor": [2.0] * 4,
    "original_max_position_embeddings": 32,
}

# Settings of published checkpoints that change how a family computes, added to the tiny config of the family.
VARIANTS: dict[str, dict[str, Any]] = {
    "deepseek_v3+yarn": {
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "original_max_position_embeddings": 14,
        }
    },
    "dots3_note_text+sliding-attention": {"layer_types": ["sliding_attention"] * 4},
    "gemma4_text+bidirectional": {"use_bidirectional_attention": "all"},
    "gemma4_text+shared-kv": {"num_kv_shared_layers": 2},
    "lfm2_moe+full-attention": {"layer_types": ["full_attention"] * 4},
    "minimax+full-attention": {"layer_types": ["full_attention"] * 4},
    "llama4_text+top-2-every-second-layer": {"num_experts_per_tok": 2, "interleave_moe_layer_step": 2},
    "llama4_text+scaled-queries": {"floor_scale": 4, "attn_scale": 1.0},
    "phimoe+longrope": {
        "rope_parameters": {**_LONGROPE, "short_mscale": 1.1, "long_mscale": 1.3},
    },
    "qwen3_moe+dynamic-ntk": {
        "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0},
        "max_position_embeddings": 32,
    },
    "qwen3_moe+longrope": {"rope_parameters": {**_LONGROPE, "factor": 4.0}},
    "qwen3_moe+sliding-upper-layers": {"use_sliding_window": True, "max_window_layers": 2},
}
