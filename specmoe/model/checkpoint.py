"""Reads a Hugging Face checkpoint without materialising its experts.

The model is built with every parameter on ``meta``; transformers' own key renamings map each
safetensors key to its parameter; expert keys are handled by ``specmoe.model.convert``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from accelerate.utils import set_module_tensor_to_device
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, apply_renamings, rename_source_key

from specmoe.errors import UnsupportedModelError
from specmoe.model.attention import check_attention

_PER_EXPERT = re.compile(r"^(?P<module>.+\.experts)\.(?P<expert>\d+)\.(?P<part>\w+)\.(?P<kind>weight|bias)$")
_FUSED = re.compile(r"^(?P<module>.+\.experts)\.(?P<part>(?:gate_up_proj|up_proj|down_proj)(?:_bias)?)$")


@dataclass(frozen=True)
class ExpertKey:
    """The place of one checkpoint key in an experts module; ``expert`` is None for a fused [E, ...] tensor."""

    module: str
    expert: int | None
    part: str


def build_shell(path: Path) -> PreTrainedModel:
    """The model of a checkpoint folder with parameters on ``meta`` and buffers (rotary tables) real.

    Raises:
        UnsupportedModelError: no config, an unknown architecture, or no MoE layer that can be hooked.
    """
    try:
        config = AutoConfig.from_pretrained(path)
        check_attention(config)
        with init_empty_weights(include_buffers=False):
            model = AutoModelForCausalLM.from_config(config)
    except (OSError, ValueError, KeyError) as error:
        raise UnsupportedModelError(
            f"{path} holds no causal language model that transformers can build ({error}): check the folder"
        ) from error
    check_attention(model.config)
    if not expert_modules(model):
        raise UnsupportedModelError(
            f"{type(model).__name__} has no MoE layer with transformers' experts interface: "
            "use a family such as Mixtral, Qwen2/3-MoE, OLMoE or DeepSeek"
        )
    return model.eval()


def expert_modules(model: PreTrainedModel) -> dict[str, Any]:
    """Experts modules by name, in layer order; recognised by the flags of transformers' experts interface."""
    return {name: m for name, m in model.named_modules() if hasattr(m, "has_gate") and hasattr(m, "is_transposed")}


class Checkpoint:
    """The safetensors files of a folder and the place of each key in ``model``."""

    def __init__(self, path: Path, model: PreTrainedModel) -> None:
        self.path = path
        self.files = checkpoint_files(path)
        self._model = model
        transforms = get_model_conversion_mapping(model)
        self._converters = [t for t in transforms if isinstance(t, WeightConverter)]
        self._renamings = [t for t in transforms if not isinstance(t, WeightConverter)]

    def entries(self) -> Iterator[tuple[Path, Any, str]]:
        """Every (file, opened file, key), file by file.

        Raises:
            UnsupportedModelError: a file is truncated or not safetensors.
        """
        for file in self.files:
            opened = open_shard(file)
            for key in opened.keys():  # noqa: SIM118 (safe_open is no mapping)
                yield file, opened, key

    def expert_key(self, key: str) -> ExpertKey | None:
        """The place of an expert's key, or None for a key of the rest of the model."""
        renamed = self._with_prefix(apply_renamings(key, self._renamings))
        if match := _PER_EXPERT.match(renamed):
            suffix = "_bias" if match["kind"] == "bias" else ""
            return ExpertKey(match["module"], int(match["expert"]), match["part"] + suffix)
        if match := _FUSED.match(renamed):
            return ExpertKey(match["module"], None, match["part"])
        return None

    def _with_prefix(self, key: str) -> str:
        prefix = self._model.base_model_prefix
        return key if key.startswith(prefix + ".") or key.startswith("lm_head") else f"{prefix}.{key}"

    def load_non_experts(self, dtype: torch.dtype, device: torch.device) -> None:
        """Load everything but the experts into ``model``, cast to ``dtype``.

        Raises:
            UnsupportedModelError: a key needs a conversion that is not a renaming, or a weight is missing.
        """
        meta = self._model.state_dict()
        for _, opened, key in self.entries():
            if self.expert_key(key) is not None:
                continue
            target, pattern = rename_source_key(
                key, self._renamings, self._converters, self._model.base_model_prefix, meta
            )
            if pattern is not None:
                raise UnsupportedModelError(
                    f"checkpoint key {key} needs a weight conversion that only experts support: use another model"
                )
            if target in meta:
                set_module_tensor_to_device(self._model, target, device, value=opened.get_tensor(key), dtype=dtype)
        self._model.tie_weights()
        for name, buffer in list(self._model.named_buffers()):
            set_module_tensor_to_device(self._model, name, device, value=buffer)
        experts = tuple(expert_modules(self._model))
        missing = [n for n, p in self._model.named_parameters() if p.is_meta and not n.startswith(experts)]
        if missing:
            raise UnsupportedModelError(
                f"{self.path} lacks {len(missing)} weights, the first is {missing[0]}: download the checkpoint again"
            )


def open_shard(file: Path) -> Any:
    """An opened safetensors file; tensors are read on access.

    Raises:
        UnsupportedModelError: it is truncated or not safetensors.
    """
    try:
        return safe_open(file, framework="pt")
    except SafetensorError as error:
        raise UnsupportedModelError(f"{file} cannot be read ({error}): download it again") from error


def checkpoint_files(path: Path) -> list[Path]:
    """The safetensors files of a checkpoint folder, in index order.

    Raises:
        UnsupportedModelError: no safetensors there, or a listed shard is missing.
    """
    index = path / "model.safetensors.index.json"
    if index.exists():
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    elif (path / "model.safetensors").exists():
        names = ["model.safetensors"]
    else:
        raise UnsupportedModelError(f"{path} holds no safetensors weights: save the model as safetensors")
    missing = [name for name in names if not (path / name).exists()]
    if missing:
        raise UnsupportedModelError(f"{path} lacks the shard {missing[0]}: download it again")
    return [path / name for name in names]
