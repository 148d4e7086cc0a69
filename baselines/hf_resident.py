"""The upper bound: transformers with every expert in memory and no limit.

It is not comparable with the other systems, which have less memory; its records say that no limit was enforced.
"""

from __future__ import annotations

from typing import ClassVar

from baselines.contract import SAMPLES, CapabilityCard, Setting
from baselines.hf import ExpertsOptions, TransformersSystem
from baselines.registry import register
from specmoe.model.wrappers import load_whole


@register
class ResidentSystem(TransformersSystem):
    """transformers' ``from_pretrained``, moved to the device."""

    card: ClassVar[CapabilityCard] = CapabilityCard(
        name="hf-resident",
        title="transformers, all resident",
        summary="upper bound without any memory limit: every expert stays on the device",
        grain="nothing",
        knows_budget=False,
        sampling=SAMPLES,
        tiers=("gpu", "ram"),
        devices=("cpu", "cuda"),
        slow_tiers=("disk", "host", "paced"),
        limited=False,
    )
    Options = ExpertsOptions

    def build(self, setting: Setting) -> None:
        """Nothing to make: it reads the checkpoint as it is."""

    def prepare(self, setting: Setting) -> None:
        model = load_whole(setting.model_path, setting.dtype)
        if model._can_set_experts_implementation():
            model.set_experts_implementation(self.options.experts)
        self._model = model.eval().to(setting.device)
