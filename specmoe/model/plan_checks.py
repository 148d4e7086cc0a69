"""Checks a load plan against the model from file headers: dtypes, shapes, missing tensors.  No weight is read."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.core_model_loading import Concatenate, Interleave, MergeModulelist, Transpose
from transformers.integrations.finegrained_fp8 import Fp8Dequantize
from transformers.integrations.mxfp4 import Mxfp4Dequantize

from specmoe.errors import UnsupportedModelError
from specmoe.model.load_plan import Group, LoadPlan, Stored, is_per_expert

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_FLOATS = ("F64", "F32", "F16", "BF16")
_FP8 = ("F8_E4M3", "F8_E5M2")
_PACKED = re.compile(r"_(blocks|scales)$")  # MXFP4
_SCALES = re.compile(r"(weight_scale_inv|activation_scale)$")


def check_groups(plan: LoadPlan, model: PreTrainedModel, experts: dict[str, Any]) -> None:
    """Check every group of a plan; ``experts`` are the experts modules by name.

    Raises:
        UnsupportedModelError: a tensor of a wrong dtype or shape, one that is missing, or a conversion of experts that
            cannot be done expert by expert; the message names it.
    """
    state: dict[str, torch.Tensor] = model.state_dict()
    produced: set[str] = set()
    for group in plan.groups.values():
        for pattern, stored in group.all_sources:
            _check_dtype(group, pattern, stored, state[group.target].dtype)
        module = experts.get(group.target.rpartition(".")[0])
        if module is None:
            outputs = _shapes(group, model, {p: [_meta(s) for s in many] for p, many in group.sources.items()})
        else:
            check_expert_group(group, int(module.num_experts))
            one = {p: [_meta_expert(p, many, int(module.num_experts))] for p, many in group.sources.items()}
            found = _shapes(group, model, one)
            outputs = {name: (int(module.num_experts) * shape[0], *shape[1:]) for name, shape in found.items()}
            if group.converter is None:
                outputs = {group.target: next(stored.shape for _, stored in group.all_sources)}
        for name, shape in outputs.items():
            if name not in state or tuple(state[name].shape) != shape:
                key = next(stored.key for _, stored in group.all_sources)
                expected = tuple(state[name].shape) if name in state else "nothing"
                raise UnsupportedModelError(
                    f"{key} gives {name} the shape {shape}, the model has {expected}: check that config.json belongs "
                    "to these weights"
                )
        produced.update(outputs)
    _check_missing(model, state, produced)


def check_expert_group(group: Group, experts: int) -> None:
    """Check that a parameter of ``experts`` experts can be converted one expert at a time.

    Raises:
        UnsupportedModelError: an expert is missing, or has another shape than the others, or the conversion mixes
            experts.
    """
    for pattern, many in group.sources.items():
        if not is_per_expert(pattern):
            continue
        numbers = group.numbers[pattern]
        if numbers != list(range(experts)):
            absent = sorted(set(range(experts)) - set(numbers))
            beyond = sorted(set(numbers) - set(range(experts)))
            what = f"expert {beyond[0]} is one too many" if beyond else "one is there twice"
            what = f"the first missing is expert {absent[0]}" if absent else what
            raise UnsupportedModelError(
                f"{group.target} has {experts} experts, the checkpoint holds {len(set(numbers))} of {pattern}: {what}; "
                "check that config.json belongs to these weights, or download them again"
            )
        usual = max((s.shape for s in many), key=[s.shape for s in many].count)
        for stored in many:
            if stored.shape != usual:
                raise UnsupportedModelError(
                    f"{stored.key} has the shape {stored.shape}, the other experts have {usual}: download the "
                    "checkpoint again"
                )
            if stored.dtype != many[0].dtype and {stored.dtype, many[0].dtype} - set(_FLOATS):
                raise UnsupportedModelError(
                    f"{stored.key} holds {stored.dtype}, other experts {many[0].dtype}: download the checkpoint again"
                )
    for op in getattr(group.converter, "operations", ()):
        if not _keeps_experts_apart(op, any(is_per_expert(pattern) for pattern in group.sources)):
            raise UnsupportedModelError(
                f"{group.target} needs the conversion {type(op).__name__}, which mixes experts: save the model with "
                "save_pretrained under a recent transformers, or use another model"
            )


def _keeps_experts_apart(op: Any, merged: bool) -> bool:
    """Whether an operation on [E, ...] handles each expert by itself (``merged``: the experts are stored apart)."""
    if isinstance(op, MergeModulelist):
        return merged and bool(op.dim == 0)
    if isinstance(op, Concatenate | Interleave):
        return bool(op.dim != 0)
    if isinstance(op, Transpose):
        return 0 not in (op.dim0, op.dim1)
    return isinstance(op, Fp8Dequantize | Mxfp4Dequantize) or getattr(op, "keeps_experts_apart", False)


def _check_dtype(group: Group, pattern: str, stored: Stored, target: torch.dtype) -> None:
    if stored.dtype in _FLOATS and target.is_floating_point:
        return
    if not target.is_floating_point and stored.dtype in DTYPES and not DTYPES[stored.dtype].is_floating_point:
        return
    if group.dequantizes and stored.dtype == "U8" and _PACKED.search(pattern):
        _require_companion(group, pattern, stored, re.sub("blocks$", "scales", pattern))
        return
    if group.dequantizes and stored.dtype in ("U8", "F8_E8M0") and _SCALES.search(pattern):
        return
    if group.dequantizes and stored.dtype in _FP8:
        _require_companion(group, pattern, stored, f"{pattern}_scale_inv")
        return
    if stored.dtype in _FP8:
        raise UnsupportedModelError(f"{stored.key} holds {stored.dtype} numbers without weight_scale_inv: {_ADVICE}")
    raise UnsupportedModelError(f"{stored.key} holds {stored.dtype} numbers of an unknown quantisation: {_ADVICE}")


_ADVICE = "use a checkpoint in bfloat16, float16 or float32, or save a dequantised one"


def _require_companion(group: Group, pattern: str, stored: Stored, companion: str) -> None:
    """Every quantised tensor has its scales."""
    number = group.numbers[pattern][group.sources[pattern].index(stored)]
    if number not in group.numbers.get(companion, []):
        raise UnsupportedModelError(f"{stored.key} holds {stored.dtype} numbers without {companion}: {_ADVICE}")


def _meta(stored: Stored) -> torch.Tensor:
    return torch.empty(stored.shape, dtype=DTYPES[stored.dtype], device="meta")


def _meta_expert(pattern: str, many: list[Stored], experts: int) -> torch.Tensor:
    """The first expert of the tensors of one pattern, as an input of the conversion.

    Raises:
        UnsupportedModelError: a tensor of all experts whose rows cannot be divided among them.
    """
    first = _meta(many[0])
    if is_per_expert(pattern) or not first.ndim:
        return first
    if len(first) % experts:
        raise UnsupportedModelError(
            f"{many[0].key} has the shape {many[0].shape}, which is not that of {experts} experts: check that "
            "config.json belongs to these weights"
        )
    return first[: len(first) // experts]


def _shapes(group: Group, model: PreTrainedModel, tensors: dict[str, list[torch.Tensor]]) -> dict[str, tuple[int, ...]]:
    try:
        return {name: tuple(tensor.shape) for name, tensor in group.convert(model, tensors).items()}
    except (ValueError, RuntimeError, AssertionError, KeyError, IndexError, TypeError) as error:
        key = next(stored.key for _, stored in group.all_sources)
        reason = str(error).partition("\n")[0][:100]
        raise UnsupportedModelError(
            f"{key} and its companions do not give {group.target} ({reason}): download the checkpoint again"
        ) from error


def _check_missing(model: PreTrainedModel, state: Iterable[str], produced: set[str]) -> None:
    tied: dict[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    found = produced | {a for a, b in tied.items() if b in produced} | {b for a, b in tied.items() if a in produced}
    optional = getattr(model, "_keys_to_ignore_on_load_missing", None) or ()
    missing = [n for n in state if n not in found and not any(re.search(p, n) for p in optional)]
    if missing:
        raise UnsupportedModelError(
            f"the checkpoint lacks {len(missing)} weights of {type(model).__name__}, the first is {missing[0]}: "
            "download it again"
        )
