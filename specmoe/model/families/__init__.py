"""Families that need modules of their own beside transformers' interfaces: one small module each, and the registry.

A family replaces modules of the model that was built on ``meta``: by ones that hand their tokens to the engine's
experts hook (``HookedExperts``), or by ones whose recurrent state can go back to the last accepted token.  Where names
differ, it says how the checkpoint's keys become these modules' parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel
from transformers.core_model_loading import WeightTransform

from specmoe.model.families.base import Family
from specmoe.model.families.encoder_decoder import EncoderDecoder

FAMILIES: dict[str, tuple[str, str]] = {
    "dbrx": ("dbrx", "FAMILY"),
    "ernie4_5_vl_moe": ("ernie4_5_vl", "FAMILY"),
    "jetmoe": ("jetmoe", "FAMILY"),
    "lara_mini": ("gated_delta", "LARA_MINI"),
    "llama4_text": ("llama4", "FAMILY"),
    "longcat_flash": ("longcat_flash", "FAMILY"),
    "nllb-moe": ("nllb_moe", "FAMILY"),
    "qwen3_5_moe_text": ("gated_delta", "QWEN3_5_MOE"),
    "qwen3_next": ("gated_delta", "QWEN3_NEXT"),
    "switch_transformers": ("switch_transformers", "FAMILY"),
}
"""By ``model_type`` of a model or of a part of it: module and name.  Only those in use are imported."""

ENCODER_DECODERS: dict[str, tuple[str, str]] = {
    "nllb-moe": ("nllb_moe", "ENCODER_DECODER"),
    "switch_transformers": ("switch_transformers", "ENCODER_DECODER"),
}


def adapt(model: PreTrainedModel) -> None:
    """Replace the modules of ``model`` (on ``meta``) that its families name."""
    for part, family in _parts(model):
        family.adapt(part)


def conversions(model: PreTrainedModel) -> list[WeightTransform]:
    """How checkpoint keys become the parameters of replaced modules; they go before transformers' conversions."""
    return [transform for part, family in _parts(model) for transform in family.conversions(part)]


def ignores(model: PreTrainedModel) -> Callable[[str], str | None]:
    """Says of a checkpoint's key why the families of ``model`` do without it, or None."""
    parts = list(_parts(model))
    return lambda key: next((reason for part, family in parts if (reason := family.ignores(part, key))), None)


def restores_state(config: PreTrainedConfig) -> bool:
    """Whether the state of a family's recurrent layers can go back to the last accepted token."""
    family: Family | None = _find(FAMILIES, config.model_type)
    return family is not None and family.restores_state


def encoder_decoder(config: PreTrainedConfig) -> EncoderDecoder | None:
    """What a model of ``config`` adds to a decoder, or None."""
    found: EncoderDecoder | None = _find(ENCODER_DECODERS, config.model_type)
    return found


def _find(registry: dict[str, tuple[str, str]], model_type: str) -> Any:
    """What ``registry`` has for a model type, or None."""
    if model_type not in registry:
        return None
    module, name = registry[model_type]
    return getattr(import_module(f"{__name__}.{module}"), name)


def _parts(model: PreTrainedModel) -> Iterator[tuple[PreTrainedModel, Family]]:
    """The outermost part of each model type that is a family, and the family."""
    seen: set[str] = set()
    for part in [m for m in model.modules() if isinstance(m, PreTrainedModel)]:
        model_type = part.config.model_type
        family: Family | None = None if model_type in seen else _find(FAMILIES, model_type)
        if family is not None:
            seen.add(model_type)
            yield part, family
