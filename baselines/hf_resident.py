"""The upper bound: transformers with every expert in memory and no limit.

Not a rival: it has memory the others do not, and its records say so (no limit enforced).
"""

from __future__ import annotations

from typing import ClassVar

import torch
from transformers import AutoModelForCausalLM

from baselines.contract import CapabilityCard, Setting, SystemOptions, register
from baselines.hf import Experts, GreedySystem


@register
class ResidentSystem(GreedySystem):
    """``AutoModelForCausalLM.from_pretrained``, on the GPU where there is one."""

    card: ClassVar[CapabilityCard] = CapabilityCard(
        name="hf-resident",
        title="transformers, all resident",
        summary="upper bound without any memory limit: every expert stays on the device",
        grain="nothing",
        knows_budget=False,
        tiers=("gpu", "ram"),
        limited=False,
    )

    class Options(SystemOptions):
        experts: Experts = "grouped_mm"

    def build(self, setting: Setting) -> None:
        pass

    def prepare(self, setting: Setting) -> None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        model = AutoModelForCausalLM.from_pretrained(setting.model_path, dtype=setting.dtype)
        model.set_experts_implementation(self.options.experts)
        self._model = model.eval().to(device)
