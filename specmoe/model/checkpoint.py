"""Reads a Hugging Face checkpoint without materialising its experts.

The model is built on ``meta`` as ``from_pretrained`` builds it; transformers' own loader fills in everything but the
experts, which ``specmoe.model.convert`` handles.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.core_model_loading import convert_and_load_state_dict_in_model
from transformers.modeling_utils import LoadStateDictConfig
from transformers.utils import logging as transformers_logging

from specmoe.errors import UnsupportedModelError
from specmoe.generation import load_generation_config
from specmoe.model import families
from specmoe.model.load_plan import NOT_TEXT, Group, Keys, Stored, make_plan
from specmoe.model.plan_checks import DTYPES, check_groups
from specmoe.model.quantization import make_quantizer
from specmoe.model.shards import headers, open_shard
from specmoe.model.support import check_config, check_model, expert_modules, one_line
from specmoe.model.wrappers import OtherParts, build_text_model

__all__ = ["Checkpoint", "build_shell", "checkpoint_dtype", "expert_modules"]

_log = logging.getLogger(__name__)

# What transformers raises for a config that it cannot read or build a model from
_UNUSABLE = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    StrictDataclassError,
)


def build_shell(path: Path, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """The model of a checkpoint folder on ``meta``, as ``from_pretrained(dtype=...)`` builds it before it loads.

    Args:
        path: the folder.
        dtype: of the model; default that of the checkpoint.

    Raises:
        UnsupportedModelError: no config, an unknown architecture, or a family that cannot be offloaded.
    """
    config = _read_config(path)
    check_config(config)
    dtype = dtype or _config_dtype(config, path)
    try:
        with ExitStack() as contexts:
            for context in PreTrainedModel.get_init_context(dtype, False, False, None):
                contexts.enter_context(context)
            model = build_text_model(config, dtype)
            families.adapt(model)
    except (*_UNUSABLE, RuntimeError, ImportError) as error:
        raise UnsupportedModelError(
            f"{path} holds no causal language model that transformers can build ({one_line(error)}): check the folder"
        ) from error
    check_model(model)
    model.generation_config = load_generation_config(path)
    _return_logits_alone(model)
    return model.eval()


def _return_logits_alone(model: PreTrainedModel) -> None:
    """Leave out what a config asks for beside the logits.

    With router logits transformers computes a training loss, which needs a mask of another shape than decoding has.
    """
    for part in (part for part in model.modules() if isinstance(part, PreTrainedModel)):
        part.config.return_dict = True
        if getattr(part.config, "output_router_logits", False):
            part.config.output_router_logits = False


def checkpoint_dtype(path: Path) -> torch.dtype:
    """The dtype that a checkpoint is loaded in by default: the config's, else that of the first weight.

    Raises:
        UnsupportedModelError: no config, or no weights.
    """
    return _config_dtype(_read_config(path), path)


def _read_config(path: Path) -> PreTrainedConfig:
    if (path / "adapter_config.json").exists():
        raise UnsupportedModelError(
            f"{path} holds an adapter, which is not applied: merge it with peft's merge_and_unload and save the model, "
            "or remove adapter_config.json"
        )
    if not (path / "config.json").is_file():
        raise UnsupportedModelError(
            f"{path} holds no causal language model that transformers can build (no config.json): check the folder"
        )
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(path)
    except _UNUSABLE as error:
        raise UnsupportedModelError(
            f"{path} holds no causal language model that transformers can build ({one_line(error)}): check the folder"
        ) from error
    return config


def _config_dtype(config: PreTrainedConfig, path: Path) -> torch.dtype:
    for part in (config, config.get_text_config()):
        if isinstance(part.dtype, torch.dtype):
            return part.dtype
    dtypes = (stored.dtype for stored in headers(path))
    return next((DTYPES[d] for d in dtypes if d in ("F32", "F16", "BF16")), torch.float32)


class Checkpoint:
    """The safetensors files of a folder and the place of each tensor in ``model``, a shell of the same folder.

    Nothing is read but headers.

    Raises:
        UnsupportedModelError: a quantisation that is not supported, or a tensor that the model has no place for, that
            is missing, or that has a wrong dtype or shape.
    """

    def __init__(self, path: Path, model: PreTrainedModel) -> None:
        self.path = path
        self._model = model
        stored = list(headers(path))
        self._quantizer = make_quantizer(model.config, [tensor.key for tensor in stored])
        self._experts = expert_modules(model)
        plan = make_plan(model, stored, self._quantizer, OtherParts(_read_config(path), self._quantizer).hold)
        check_groups(plan, model, self._experts)
        self.ignored = plan.ignored
        self._groups = plan.groups

    def non_experts(self) -> Iterator[Stored]:
        """Every tensor of the rest of the model, as stored."""
        for group in self._groups.values():
            if self._module(group) is None:
                yield from (stored for _, stored in group.all_sources)

    def expert_groups(self) -> dict[str, list[Group]]:
        """What becomes the parameters of each experts module, by module in layer order."""
        found: dict[str, list[Group]] = {name: [] for name in self._experts}
        for group in self._groups.values():
            if (module := self._module(group)) is not None:
                found[module].append(group)
        return found

    def _module(self, group: Group) -> str | None:
        module = group.target.rpartition(".")[0]
        return module if module in self._experts else None

    def load_non_experts(self, device: torch.device) -> None:
        """Load everything but the experts into the model with the dtypes and values of ``from_pretrained``.

        Raises:
            UnsupportedModelError: a tensor could not be converted.
        """
        model, dtype = self._model, self._model.config.dtype
        other = sum(reason == NOT_TEXT for reason in self.ignored.values())
        if other:
            _log.warning("%s: %d tensors of vision or audio parts are not loaded, it takes text only", self.path, other)
        opened = _Shards()
        config = LoadStateDictConfig(
            device_map={"": device},
            dtype=dtype,
            dtype_plan=model._get_dtype_plan(dtype),
            hf_quantizer=self._quantizer,
            weight_mapping=Keys(model, self._quantizer).conversions,
        )
        state = {stored.key: opened.file(stored.file).get_slice(stored.key) for stored in self.non_experts()}
        with _no_progress_bar():
            info, _ = convert_and_load_state_dict_in_model(model, state, config)
        failed = sorted(info.conversion_errors) or sorted(name for name, *_ in info.mismatched_keys)
        if failed:
            raise UnsupportedModelError(f"{self.path}: {failed[0]} cannot be converted: download the checkpoint again")
        experts = {f"{name}.{part}" for name, m in self._experts.items() for part, _ in m.named_parameters()}
        for name in experts:
            model.get_parameter(name)._is_hf_initialized = True  # type: ignore[attr-defined]
        model.mark_tied_weights_as_initialized(info)
        model._move_missing_keys_from_meta_to_device(info.missing_keys - experts, config.device_map, None, None)
        model._initialize_missing_keys(self._quantizer is not None)
        model.tie_weights(missing_keys=info.missing_keys, recompute_mapping=False)


class _Shards:
    """Opened safetensors files by path."""

    def __init__(self) -> None:
        self._opened: dict[Path, Any] = {}

    def file(self, path: Path) -> Any:
        if path not in self._opened:
            self._opened[path] = open_shard(path)
        return self._opened[path]


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Without transformers' bar "Loading weights"."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
