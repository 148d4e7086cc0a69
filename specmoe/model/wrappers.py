"""Checkpoints of larger models whose text part is loaded alone: vision and audio towers are left out.

The model keeps the wrapper's own class where transformers has no causal language model for it, so that positions and
logits of text-only prompts are the wrapper's own.
"""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSeq2SeqLM,
    PreTrainedConfig,
    PreTrainedModel,
)

from specmoe.model import families
from specmoe.model.load_plan import Keys

# model_type -> pattern of the modules that text does not use
_LEFT_OUT: dict[str, str] = {
    "aria": r"model\.(vision_tower|multi_modal_projector)",
    "ernie4_5_vl_moe": r"model\.(vision_tower|resampler_model|.*\.mlp\.vision_moe)",
    "glm4v_moe": r"model\.visual",
    "internvl": r"model\.(vision_tower|multi_modal_projector)",
    "mistral3": r"model\.(vision_tower|multi_modal_projector)",
    "mistral4": "",
    "qwen3_vl_moe": r"model\.visual",
}


_TEXT_MODELS = (AutoModelForCausalLM, AutoModelForSeq2SeqLM)


def has_text_model(config: PreTrainedConfig) -> bool:
    """Whether a config's model generates text, alone or as a part that can be loaded alone."""
    return any(type(config) in auto._model_mapping for auto in _TEXT_MODELS) or config.model_type in _LEFT_OUT


def is_left_out(config: PreTrainedConfig, name: str) -> bool:
    """Whether a parameter or buffer of a config's model belongs to a part that text does not use."""
    pattern = _LEFT_OUT.get(config.model_type)
    return bool(pattern and re.match(rf"(?:{pattern})\.", name))


def build_text_model(config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """The model of a config for text alone; weights are created as torch's default device and dtype say."""
    for auto in _TEXT_MODELS:
        if type(config) in auto._model_mapping:
            whole: PreTrainedModel = auto.from_config(config, dtype=dtype)
            return whole
    model: PreTrainedModel = AutoModelForImageTextToText.from_config(config, dtype=dtype)
    left_out = re.compile(_LEFT_OUT[config.model_type])
    for name, _ in list(model.named_modules()):
        if left_out.fullmatch(name):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, None)
    return model


def load_whole(path: str | Path, dtype: torch.dtype) -> PreTrainedModel:
    """A checkpoint as transformers loads it, whole, with what its config.json asks of this project's families."""
    config = AutoConfig.from_pretrained(path)
    autos = (*_TEXT_MODELS, AutoModelForImageTextToText)
    auto = next((auto for auto in autos if type(config) in auto._model_mapping), AutoModelForCausalLM)
    model: PreTrainedModel = auto.from_pretrained(path, dtype=dtype)
    family = families.encoder_decoder(config)
    if family is not None:
        family.correct(model)
    return model


class OtherParts:
    """The checkpoint keys of a wrapper's parts that are not loaded for text.

    Args:
        config: of the checkpoint.
        quantizer: what dequantises the checkpoint, or None.
    """

    def __init__(self, config: PreTrainedConfig, quantizer: object) -> None:
        self._config, self._quantizer = config, quantizer

    def hold(self, key: str) -> bool:
        """Whether a checkpoint key is a weight of the wrapper."""
        if type(self._config) not in AutoModelForImageTextToText._model_mapping:
            return False
        return self._whole.place(key)[0] in self._whole.state

    @cached_property
    def _whole(self) -> Keys:
        """The places of keys in the whole wrapper."""
        with torch.device("meta"):
            return Keys(AutoModelForImageTextToText.from_config(self._config), self._quantizer)
