"""A GGUF file of a Qwen3-MoE checkpoint for llama.cpp, written layer by layer from the expert store.

Weights keep the store's dtype where it is theirs, else the cell's; norms and routers are float32, as llama.cpp expects.
The vocabulary is a placeholder of the right size (``tokenizer.ggml.model = none``), because token ids are passed
directly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from baselines import fused
from baselines.contract import NotSupported, require
from specmoe.files import replacing
from specmoe.model.checkpoint import Checkpoint, build_shell
from specmoe.model.shards import open_shard
from specmoe.offload.store import ExpertStore

ARCH = "qwen3moe"
Named = tuple[str, torch.Tensor]

_TOP = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_LAYER = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate": "ffn_gate_inp",
}
_FLOAT32 = ("norm.weight", "ffn_gate_inp.weight")


def write(model_path: Path, store: ExpertStore, out: Path, dtype: torch.dtype) -> None:
    """Write ``out`` for a cell of ``dtype``; it appears under its name only when complete.

    Raises:
        NotSupported: another model family, or a Qwen3-MoE variant that llama.cpp's graph does not implement.
    """
    gguf = require("gguf", "llamacpp")
    model = build_shell(model_path)
    _check(model.config, len(store.layers))
    checkpoint = Checkpoint(model_path, model)
    types = {
        torch.float32: gguf.GGMLQuantizationType.F32,
        torch.bfloat16: gguf.GGMLQuantizationType.BF16,
        torch.float16: gguf.GGMLQuantizationType.F16,
    }
    with replacing(out) as partial:
        writer = gguf.GGUFWriter(partial, ARCH)
        _add_settings(writer, model.config)
        for name, tensor in _tensors(checkpoint, store):
            kept = _dtype(name, tensor, store, dtype)
            nbytes = tensor.numel() * kept.itemsize
            writer.add_tensor_info(name, tensor.shape, np.dtype(np.float32), nbytes, types[kept])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, tensor in _tensors(checkpoint, store):
            writer.write_tensor_data(
                tensor.to(_dtype(name, tensor, store, dtype)).contiguous().view(torch.uint8).numpy()
            )
        writer.close()


def _check(config: Any, moe_layers: int) -> None:
    if config.model_type != "qwen3_moe":
        raise NotSupported(f"the GGUF writer supports qwen3_moe, this checkpoint is {config.model_type}")
    if moe_layers != config.num_hidden_layers:
        raise NotSupported(
            "llama.cpp's qwen3moe graph has experts in every layer, this checkpoint has dense layers too"
        )
    if not config.norm_topk_prob or config.attention_bias:
        raise NotSupported("llama.cpp's qwen3moe graph normalises gate weights and has no attention bias")


def _add_settings(writer: Any, config: Any) -> None:
    values: list[tuple[Callable[[Any], None], Any]] = [
        (writer.add_block_count, config.num_hidden_layers),
        (writer.add_context_length, config.max_position_embeddings),
        (writer.add_embedding_length, config.hidden_size),
        (writer.add_feed_forward_length, config.intermediate_size),
        (writer.add_head_count, config.num_attention_heads),
        (writer.add_head_count_kv, config.num_key_value_heads),
        (writer.add_key_length, config.head_dim),
        (writer.add_value_length, config.head_dim),
        (writer.add_layer_norm_rms_eps, config.rms_norm_eps),
        (writer.add_rope_freq_base, config.rope_parameters["rope_theta"]),
        (writer.add_expert_count, config.num_experts),
        (writer.add_expert_used_count, config.num_experts_per_tok),
        (writer.add_expert_feed_forward_length, config.moe_intermediate_size),
        (writer.add_vocab_size, config.vocab_size),
        (writer.add_tokenizer_model, "none"),
    ]
    for add, value in values:
        add(value)


def _tensors(checkpoint: Checkpoint, store: ExpertStore) -> Iterator[Named]:
    """Every tensor with its GGUF name, experts last; each is read when the iterator reaches it."""
    for stored in checkpoint.non_experts():
        yield _name(stored.key), open_shard(stored.file).get_tensor(stored.key)
    for spec, tensors in fused.layers(store):
        gate, up = tensors["gate_up_proj"].chunk(2, dim=1)  # [E, I, H] each
        for name, tensor in (("gate", gate), ("up", up), ("down", tensors["down_proj"])):
            yield f"blk.{spec.model_layer}.ffn_{name}_exps.weight", tensor


def _name(key: str) -> str:
    if key in _TOP:
        return _TOP[key]
    layer, _, rest = key.removeprefix("model.layers.").partition(".")
    part = rest.removesuffix(".weight")
    if not layer.isdigit() or part not in _LAYER:
        raise NotSupported(f"checkpoint key {key} has no name in a {ARCH} GGUF file")
    return f"blk.{layer}.{_LAYER[part]}.weight"


def _dtype(name: str, tensor: torch.Tensor, store: ExpertStore, dtype: torch.dtype) -> torch.dtype:
    if name.endswith(_FLOAT32):
        return torch.float32
    return store.dtype if tensor.dtype == store.dtype else dtype
