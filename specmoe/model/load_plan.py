"""Which parameter each tensor of a checkpoint becomes, decided from file headers before anything is written.

The places and conversions are those of transformers' own loader.  Every key is claimed by a parameter or buffer,
knowingly ignored for a reason, or an error that names it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    MergeModulelist,
    Transpose,
    WeightConverter,
    apply_renamings,
    build_glob_alternation,
    dot_natural_key,
    rename_source_key,
)

from specmoe.errors import UnsupportedModelError
from specmoe.model import families

NOT_TEXT = "a vision or audio part, which text does not use"
_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")
_PREDICTION_LAYER = re.compile(r"(?:^|\.)mtp(?:_layers|_block)?\.")
_PREDICTION_PARTS = (".eh_proj.", ".enorm.", ".hnorm.", ".shared_head.")


# Conversions that lay an expert's tensors one after another: (operation, dimension)
_JOINING = ([(MergeModulelist, 0)], [(MergeModulelist, 0), (Concatenate, 1)])


@dataclass(frozen=True)
class Stored:
    """One tensor of a checkpoint as its file's header describes it; ``dtype`` in safetensors' names (``BF16``)."""

    file: Path
    key: str
    dtype: str
    shape: tuple[int, ...]


@dataclass
class Group:
    """The stored tensors that become one parameter (or several, if it is split): converter and its inputs.

    ``sources`` lists them by source pattern, in the order of their numbers; ``numbers`` holds what ``*`` matched.
    """

    target: str
    converter: Any = None
    sources: dict[str, list[Stored]] = field(default_factory=dict)
    numbers: dict[str, list[int]] = field(default_factory=dict)

    @property
    def all_sources(self) -> Iterator[tuple[str, Stored]]:
        """Every (pattern, stored tensor)."""
        return ((pattern, stored) for pattern, many in self.sources.items() for stored in many)

    @property
    def dequantizes(self) -> bool:
        """Whether the conversion starts from quantised numbers."""
        return any(hasattr(op, "hf_quantizer") for op in getattr(self.converter, "operations", ()))

    @property
    def joined(self) -> list[str] | None:
        """The source patterns whose tensors of an expert, one after another, are its target; None if more is done."""
        if self.converter is None:
            return list(self.sources)
        operations = [(type(op), getattr(op, "dim", None)) for op in self.converter.operations]
        if self.converter.quantization_operation is not None or operations not in _JOINING:
            return None
        return [pattern for pattern in self.converter.source_patterns if pattern in self.sources]

    def decide_transposes(self, model: PreTrainedModel) -> None:
        """Decide from the whole stored tensor what transformers decides on conversion, which here sees one expert.

        transformers transposes some families' experts unless they have the parameter's shape already.
        """
        for op in list(getattr(self.converter, "operations", ())):
            if isinstance(op, Transpose) and op.check_dims:
                stored = next(stored for _, stored in self.all_sources)
                op.check_dims = False
                if stored.shape == tuple(model.get_parameter(self.target).shape):
                    self.converter.operations.remove(op)

    def convert(self, model: PreTrainedModel, tensors: dict[str, list[torch.Tensor]]) -> dict[str, torch.Tensor]:
        """Parameters by name, from tensors by source pattern."""
        if self.converter is None:
            ((tensor,),) = tensors.values()
            return {self.target: tensor}
        self.converter.collected_tensors.update(tensors)
        outputs = self.converter.convert(self.target, model=model, config=model.config)
        return {name: (t[0] if isinstance(t, list) else t).detach() for name, t in outputs.items()}


@dataclass
class LoadPlan:
    """Groups by target, and why each ignored key is ignored."""

    groups: dict[str, Group]
    ignored: dict[str, str]


def is_per_expert(pattern: str) -> bool:
    """Whether a source pattern has a number for ``*``: experts that are stored apart."""
    return "*." in pattern


class Keys:
    """Finds the place of checkpoint keys in a model, as transformers' loader does.

    Args:
        model: with parameters on ``meta``.
        quantizer: what dequantises the checkpoint, or None.
    """

    def __init__(self, model: PreTrainedModel, quantizer: Any) -> None:
        self.state: dict[str, torch.Tensor] = model.state_dict()
        self.conversions = [*families.conversions(model), *get_model_conversion_mapping(model, None, quantizer)]
        self._converters = [t for t in self.conversions if isinstance(t, WeightConverter)]
        self._renamings = [t for t in self.conversions if not isinstance(t, WeightConverter)]
        self._by_pattern = {p: c for c in self._converters for p in c.source_patterns}
        self._prefix = model.base_model_prefix

    def place(self, key: str) -> tuple[str, str | None]:
        """The parameter of a key and the source pattern that matched, if its conversion is more than a renaming."""
        target, pattern = rename_source_key(key, self._renamings, self._converters, self._prefix, self.state)
        if target not in self.state and key in self.state:
            target, pattern = rename_source_key(key, [], [], self._prefix, self.state)
        return target, pattern

    def group(self, target: str, pattern: str | None) -> Group:
        """An empty group for a target."""
        return Group(target, deepcopy(self._by_pattern[pattern]) if pattern is not None else None)

    def number(self, key: str, pattern: str) -> int:
        """What ``*`` of a source pattern matched in a key; 0 for a pattern without one."""
        found = re.search(pattern.replace("*.", r"(\d+)\."), apply_renamings(key, self._renamings))
        return int(found[1]) if found and is_per_expert(pattern) else 0


def make_plan(
    model: PreTrainedModel,
    stored: Iterable[Stored],
    quantizer: Any,
    is_of_wrapper: Callable[[str], bool] = lambda key: False,
) -> LoadPlan:
    """Give every stored tensor its place.

    ``is_of_wrapper`` says of a key that ``model`` does not claim whether a larger model around it does.

    Raises:
        UnsupportedModelError: a key that nothing claims, or two keys for one parameter.
    """
    keys = Keys(model, quantizer)
    ordered = sorted(stored, key=lambda tensor: dot_natural_key(tensor.key))
    plan = LoadPlan({}, {})
    ignore = _Ignore(model, [tensor.key for tensor in ordered])
    family_ignores = families.ignores(model)
    unclaimed = []
    for tensor in ordered:
        if (needless := family_ignores(tensor.key)) is not None:
            plan.ignored[tensor.key] = needless
            continue
        target, pattern = keys.place(tensor.key)
        if target not in keys.state:
            reason = ignore.reason(tensor.key, target)
            if reason is None and is_of_wrapper(tensor.key):
                reason = NOT_TEXT
            if reason is None:
                unclaimed.append(tensor)
            else:
                plan.ignored[tensor.key] = reason
            continue
        if target not in plan.groups:
            plan.groups[target] = keys.group(target, pattern)
        group = plan.groups[target]
        name = pattern or "weight"
        group.sources.setdefault(name, []).append(tensor)
        group.numbers.setdefault(name, []).append(keys.number(tensor.key, name))
        if group.converter is None and len(list(group.all_sources)) > 1:
            first, second = (found for _, found in list(group.all_sources)[:2])
            raise UnsupportedModelError(
                f"{first.key} in {first.file.name} and {second.key} in {second.file.name} are both {target}: remove "
                "one from the checkpoint"
            )
    for group in plan.groups.values():
        group.decide_transposes(model)
    if unclaimed:
        others = {1: "", 2: " and another key"}.get(len(unclaimed), f" and {len(unclaimed) - 1} other keys")
        raise UnsupportedModelError(
            f"{type(model).__name__} has no place for {unclaimed[0].key} ({unclaimed[0].dtype}){others} "
            "of the checkpoint: check that config.json belongs to these weights"
        )
    return plan


class _Ignore:
    """Keys that a model does without, as transformers' loader does."""

    def __init__(self, model: PreTrainedModel, keys: list[str]) -> None:
        patterns = set(getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ())
        self._patterns = re.compile("|".join(f"(?:{p})" for p in sorted(patterns))) if patterns else None
        config = model.config.get_text_config()
        self._layers: int = config.num_hidden_layers
        self._prediction_layers = {
            self._layers + i for i in range(getattr(config, "num_nextn_predict_layers", None) or 0)
        } | {
            int(found[1]) for key in keys if any(p in key for p in _PREDICTION_PARTS) and (found := _LAYER.search(key))
        }

    def reason(self, key: str, target: str) -> str | None:
        """Why a key is ignored, or None if there is no reason."""
        if key.endswith("rotary_emb.inv_freq"):
            return "rotary frequencies follow from the config"
        if key.endswith("embed_positions.weights"):
            return "sinusoidal positions follow from the config"
        if key.endswith("EncDecAttention.relative_attention_bias.weight"):
            return "attention to the source has no relative positions"
        if self._patterns is not None and (self._patterns.search(target) or self._patterns.search(key)):
            return "transformers ignores it for this family"
        layer = _LAYER.search(key)
        number = int(layer[1]) if layer else -1
        if _PREDICTION_LAYER.search(key) or (number >= self._layers and number in self._prediction_layers):
            return "multi-token prediction is not part of the model"
        return None


def target_dtype(model: PreTrainedModel, name: str, dtype: torch.dtype) -> torch.dtype:
    """The dtype that ``from_pretrained(dtype=...)`` gives a parameter or buffer of ``model``'s state."""
    plan: dict[str, torch.dtype] = model._get_dtype_plan(dtype)
    if plan:
        pattern, by_group, _ = build_glob_alternation(list(plan))
        if (found := pattern.search(name)) is not None and found.lastgroup is not None:
            return plan[by_group[found.lastgroup]]
    own: torch.dtype = model.get_parameter_or_buffer(name).dtype
    return own
