"""A tiny random model of every Mixture-of-Experts family that the installed transformers generates text with.

A family is a ``model_type``, or one of its variants: ``NAME+VARIANT``, a key of ``VARIANTS``.  ``moe_families`` finds
the families in transformers' own sources, so a new release brings its new ones by itself; ``build`` makes the model.
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

from tests.families.shapes import OVERRIDES, SMALL, VARIANTS, VOCAB

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
_TIED_SCALE = 0.2  # of tied embeddings, which otherwise make the model repeat its last token


@cache
def moe_families() -> tuple[str, ...]:
    """Every ``model_type`` whose sources define or count experts and that an auto class generates text with."""
    generating = {model_type for names in _AUTO_CLASSES.values() for model_type in names}
    return tuple(sorted(t for t in CONFIG_MAPPING_NAMES if t in generating and _has_experts(t)))


def model_type_of(family: str) -> str:
    """The ``model_type`` of a family or variant."""
    return family.partition("+")[0]


def _has_experts(model_type: str) -> bool:
    return bool(
        _COUNT_OF_EXPERTS.search(_source(model_type, "configuration"))
        or _EXPERTS_CLASS.search(_source(model_type, "modeling"))
    )


def _source(model_type: str, kind: str) -> str:
    folder = _MODELS / model_type_to_module_name(model_type)
    return "\n".join(path.read_text() for path in sorted(folder.glob(f"{kind}_*.py")))


def example_checkpoint(family: str) -> str:
    """The checkpoint that transformers' documentation of the family's config names, or an empty text."""
    found = _CHECKPOINT.search(_source(model_type_of(family), "configuration"))
    return found[1] if found else ""


def auto_class(family: str) -> Any:
    """The auto class that loads a family for generation: causal, encoder-decoder or a multimodal wrapper."""
    return next(auto for auto, names in _AUTO_CLASSES.items() if model_type_of(family) in names)


def tiny_config(family: str) -> PreTrainedConfig:
    """The config of a family's tiny model."""
    config_class = CONFIG_MAPPING[model_type_of(family)]
    return config_class(**_merged(_small(config_class), VARIANTS.get(family, {})))


def _small(config_class: type[PreTrainedConfig]) -> dict[str, Any]:
    """The values of a config class that make its model small, and those of each of its parts."""
    fields = set(_fields(config_class))
    values = {name: value for name, value in SMALL.items() if name in fields}
    parts = {name: part for name, part in config_class.sub_configs.items() if part is not AutoConfig}
    values |= {name: _small(part) for name, part in parts.items()}
    return _merged(values, OVERRIDES.get(config_class.model_type, {}))


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


def build(family: str, folder: Path) -> PreTrainedModel:
    """A random float32 model of a family, saved to ``folder``.

    Every parameter and every saved buffer is random, so that one that is loaded wrongly changes the tokens.
    """
    torch.manual_seed(sum(family.encode()))
    model: PreTrainedModel = auto_class(family).from_config(tiny_config(family)).float().eval()
    if (size := model.num_parameters()) > _LARGEST:
        raise ValueError(f"the model of {family} has {size} parameters: add small values to OVERRIDES")
    saved = model.state_dict(keep_vars=True)
    with torch.no_grad():
        for name, tensor in saved.items():
            if isinstance(tensor, torch.nn.Parameter) and tensor.ndim > 1:
                tensor.normal_(std=0.3)
            elif isinstance(tensor, torch.nn.Parameter) and name.endswith("bias"):
                tensor.normal_(std=0.1)  # some models leave a bias as it was in memory
            elif tensor.is_floating_point():
                tensor.add_(torch.randn_like(tensor) * 0.1)
        tied = getattr(model.config.get_text_config(), "tie_word_embeddings", False)
        for module in model.modules():
            if tied and isinstance(module, torch.nn.Embedding):
                module.weight.mul_(_TIED_SCALE)
    model.tie_weights()
    model.save_pretrained(folder)
    return model


def save_config(family: str, folder: Path) -> None:
    """A family's default config and a nearly empty checkpoint: enough for a refusal that needs the config alone."""
    CONFIG_MAPPING[model_type_of(family)]().save_pretrained(folder)
    save_file({"lm_head.weight": torch.zeros(VOCAB, 32)}, folder / "model.safetensors", metadata={"format": "pt"})
