"""ERNIE 4.5 VL: each layer of a checkpoint has text experts, then vision experts; only text experts are loaded."""

from __future__ import annotations

import re
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.core_model_loading import (
    Concatenate,
    ConversionOps,
    MergeModulelist,
    WeightConverter,
    WeightTransform,
)

from specmoe.model.families.base import Family

_EXPERT = re.compile(r"\.mlp\.experts\.(\d+)\.")


class FirstRow(ConversionOps):  # type: ignore[misc]
    """[2, E] -> [1, E]: the text experts' row."""

    def convert(
        self, input_dict: dict[str, Any], source_patterns: list[str], target_patterns: list[str], **kwargs: Any
    ) -> dict[str, torch.Tensor]:
        ((stored,),) = (t if isinstance(t, list) else [t] for t in input_dict.values())
        return {target_patterns[0]: stored[:1].clone()}


def _adapt(model: PreTrainedModel) -> None:
    """Its experts are on transformers' experts interface."""


def _conversions(model: PreTrainedModel) -> list[WeightTransform]:
    """As transformers' conversions, for the text experts alone; the patterns differ from those, which stay."""
    return [
        WeightConverter(
            ["mlp.experts.*.gate_proj.weight", "mlp.experts.*.up_proj.weight"],
            "mlp.text_moe.experts.gate_up_proj",
            [MergeModulelist(dim=0), Concatenate(dim=1)],
        ),
        WeightConverter("mlp.experts.*.down_proj.weight", "mlp.text_moe.experts.down_proj", [MergeModulelist(dim=0)]),
        WeightConverter(
            r"mlp\.moe_statics\.e_score_correction_bias",
            "mlp.text_moe.gate.moe_statics.e_score_correction_bias",
            [FirstRow()],
        ),
    ]


def _ignores(model: PreTrainedModel, key: str) -> str | None:
    found = _EXPERT.search(key)
    if found and int(found[1]) >= model.config.get_text_config().moe_num_experts:
        return "a vision expert, which text does not use"
    return None


FAMILY = Family(_adapt, _conversions, _ignores)
