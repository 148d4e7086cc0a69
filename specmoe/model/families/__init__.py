"""Families that need modules of their own beside transformers' interfaces: one small module each, and the registry.

A family replaces modules of the model that was built on ``meta``: by ones that hand their tokens to the engine's
experts hook (``HookedExperts``), or by ones whose recurrent state can go back to the last accepted token.  Where names
differ, it says how the checkpoint's keys become these modules' parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from transformers import PreTrainedConfig, PreTrainedModel
from transformers.core_model_loading import WeightTransform

from specmoe.model.families import (
    dbrx,
    ernie4_5_vl,
    gated_delta,
    jetmoe,
    llama4,
    longcat_flash,
    nllb_moe,
    switch_transformers,
)
from specmoe.model.families.base import Family
from specmoe.model.families.encoder_decoder import EncoderDecoder

FAMILIES: dict[str, Family] = {
    "dbrx": dbrx.FAMILY,
    "ernie4_5_vl_moe": ernie4_5_vl.FAMILY,
    "jetmoe": jetmoe.FAMILY,
    "llama4_text": llama4.FAMILY,
    "longcat_flash": longcat_flash.FAMILY,
    **gated_delta.FAMILIES,
    "nllb-moe": nllb_moe.FAMILY,
    "switch_transformers": switch_transformers.FAMILY,
}
"""By ``model_type`` of a model or of a part of it."""

ENCODER_DECODERS: dict[str, EncoderDecoder] = {
    "nllb-moe": nllb_moe.ENCODER_DECODER,
    "switch_transformers": switch_transformers.ENCODER_DECODER,
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
    return config.model_type in FAMILIES and FAMILIES[config.model_type].restores_state


def encoder_decoder(config: PreTrainedConfig) -> EncoderDecoder | None:
    """What a model of ``config`` adds to a decoder, or None."""
    return ENCODER_DECODERS.get(config.model_type)


def _parts(model: PreTrainedModel) -> Iterator[tuple[PreTrainedModel, Family]]:
    """The outermost part of each model type that is a family, and the family."""
    seen: set[str] = set()
    for part in [m for m in model.modules() if isinstance(m, PreTrainedModel)]:
        model_type = part.config.model_type
        if model_type in FAMILIES and model_type not in seen:
            seen.add(model_type)
            yield part, FAMILIES[model_type]
