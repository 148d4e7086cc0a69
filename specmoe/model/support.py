"""Which models can be offloaded; all others are refused by their true reason before anything is written."""

from __future__ import annotations

import inspect
import re
from typing import Any, get_args

from transformers import PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache

from specmoe.errors import UnsupportedModelError
from specmoe.model import families
from specmoe.model.attention import check_attention
from specmoe.model.families.gated_delta import RaggedDeltaNet
from specmoe.model.kv_cache import layer_types
from specmoe.model.quantization import check_method
from specmoe.model.wrappers import has_text_model

_USE = "use a family such as Mixtral, Qwen2/3-MoE, OLMoE, GLM-4.5, gpt-oss or DeepSeek-V3"

# Layer types that keep a recurrent state instead of keys and values.
_RECURRENT = ("linear_attention", "mamba", "mamba2", "conv", "recurrent", "hybrid", "gated_deltanet", "lightning")
# Parts of a module's class name -> what such a module does that the KV cache of rows with different lengths cannot hold
_PARTS = {
    "Mamba": "state-space layers",
    "GatedDeltaNet": "linear attention",
    "DeltaAttention": "linear attention",
    "LightningAttention": "linear attention",
    "LinearAttention": "linear attention",
    "ShortConv": "convolution layers with a state",
    "Indexer": "indexed (sparse) attention",
    "Compressor": "compressed attention",
}

_OWN_EXPERTS = ("Experts$", "M[oO][eE]$|M[oO]EBlock$|SparseMoeBlock$")  # class names, the first that matches is named

_PICKS = ("num_experts_per_tok", "moe_topk", "moe_k", "moe_top_k", "top_k_experts")
"""Config fields that hold the number of experts per token, or one number for each layer."""


def expert_modules(model: PreTrainedModel) -> dict[str, Any]:
    """Experts modules by name, in layer order; recognised by the flags of transformers' experts interface."""
    return {name: m for name, m in model.named_modules() if hasattr(m, "has_gate") and hasattr(m, "is_transposed")}


def check_config(config: PreTrainedConfig) -> None:
    """Check what a config tells before a model is built.

    Raises:
        UnsupportedModelError: a kind of model or quantisation that is not supported.
    """
    check_method(config)
    if getattr(config, "is_encoder_decoder", False):
        family = families.encoder_decoder(config)
        if family is None:
            known = " or ".join(families.ENCODER_DECODERS)
            raise UnsupportedModelError(
                f"{config.model_type} is an encoder-decoder without experts that can be offloaded: use {known}"
            )
        family.check_config(config)
    if not has_text_model(config):
        raise UnsupportedModelError(
            f"transformers has no causal language model for {config.model_type} alone (it is a part of a larger model, "
            "or makes no text): use a text-only checkpoint of the family"
        )
    text = config.get_text_config()
    types = getattr(text, "layer_types", None) or getattr(text, "layers_block_type", None) or ()
    recurrent = [t for t in types if t in _RECURRENT]
    if recurrent and not families.restores_state(text):
        raise UnsupportedModelError(
            f"{config.model_type} has layers of type {recurrent[0]!r}, whose state cannot be restored after a rejected "
            f"draft: use a hybrid with gated delta nets (Qwen3-Next, Qwen3.5-MoE), or {_USE.removeprefix('use ')}"
        )
    layer_types(text)
    check_attention(config)


def check_model(model: PreTrainedModel) -> None:
    """Check a model that was built on ``meta``.

    Raises:
        UnsupportedModelError: experts that cannot be hooked, attention that takes no prepared mask, or layers with a
            state that cannot be restored.
    """
    name = type(model).__name__
    restored = families.restores_state(model.config.get_text_config())
    for module in model.modules():
        kind = type(module).__name__
        part = next((p for p in _PARTS if p in kind), None)
        if part is not None and not isinstance(module, RaggedDeltaNet):
            raise UnsupportedModelError(f"{name} has {_PARTS[part]} ({kind}), which is not supported: {_USE}")
    if getattr(model, "_is_stateful", False) and not restored:
        raise UnsupportedModelError(
            f"{name} keeps a recurrent state, which cannot be restored after a rejected draft: {_USE}"
        )
    if (own_cache := _own_cache(model)) is not None:
        raise UnsupportedModelError(
            f"{name} runs only with a cache of its own ({own_cache}), which holds no rows of different lengths: {_USE}"
        )
    check_attention(model.config)
    experts = expert_modules(model)
    if not experts:
        kinds = [type(module).__name__ for module in model.modules() if not isinstance(module, PreTrainedModel)]
        own = next((kind for pattern in _OWN_EXPERTS for kind in kinds if re.search(pattern, kind)), None)
        if own is not None:
            raise UnsupportedModelError(
                f"{name} computes its experts in {own}, outside transformers' experts interface: {_USE}"
            )
        raise UnsupportedModelError(f"{name} has no MoE layer with transformers' experts interface: {_USE}")
    _check_picks(model, experts)
    for module in experts.values():
        if getattr(module, "has_post_expert_norm", False):
            raise UnsupportedModelError(
                f"{type(module).__name__} normalises after each expert, which is not supported: {_USE}"
            )


def _own_cache(model: PreTrainedModel) -> str | None:
    """The cache class that a part of a model requires, if it is not one of transformers' general ones."""
    for part in model.modules():
        if isinstance(part, PreTrainedModel):
            argument = inspect.signature(type(part).forward).parameters.get("cache")
            for kind in get_args(argument.annotation) if argument is not None else ():
                if isinstance(kind, type) and issubclass(kind, Cache) and kind.__module__ != Cache.__module__:
                    return kind.__name__
    return None


def one_line(error: BaseException) -> str:
    """The start of an error's text."""
    text = " ".join(str(error).split())
    text = f"unknown name {text}" if isinstance(error, KeyError) else text
    return text if len(text) <= 120 else text[:117] + "..."


def _check_picks(model: PreTrainedModel, experts: dict[str, Any]) -> None:
    """Check that a token can have as many experts as the config says."""
    text = model.config.get_text_config()
    fewest = min(int(getattr(module, "choices", module.num_experts)) for module in experts.values())
    for config in (text, getattr(text, "ffn_config", None)):
        for name in _PICKS:
            picks = getattr(config, name, None)
            for number in picks if isinstance(picks, list | tuple) else [picks]:
                if isinstance(number, int) and not 0 < number <= fewest:
                    raise UnsupportedModelError(
                        f"{name} is {number} for layers of {fewest} experts: correct config.json, or download it again"
                    )
