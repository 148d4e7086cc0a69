"""Hugging Face accelerate's CPU offload: experts modules in host memory, copied to the GPU in every pass.

The copies are as accelerate makes them: of pageable memory, before the module computes.

Without a GPU the device is host memory as well: the hooks run but no byte crosses a link, and all experts count
against the process limit.  The card's grain is the unit that moves where there is a GPU.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from accelerate import cpu_offload

from baselines import fused
from baselines.contract import SAMPLES, CapabilityCard, Setting
from baselines.hf import TransformersSystem, check_fits_limit, check_tier, shell_without_experts
from baselines.registry import register
from specmoe.model.checkpoint import expert_modules
from specmoe.offload.store import ExpertStore


@register
class AccelerateCpuSystem(TransformersSystem):
    """``cpu_offload`` on every experts module, the rest on the device."""

    card: ClassVar[CapabilityCard] = CapabilityCard(
        name="accelerate-cpu",
        title="accelerate CPU offload",
        summary="cpu_offload on every experts module: hooks move whole modules from host memory",
        grain="modules",
        knows_budget=False,
        sampling=SAMPLES,
        tiers=("gpu", "ram"),
        devices=("cpu", "cuda"),
        slow_tiers=("disk", "host"),
    )

    def prepare(self, setting: Setting) -> None:
        check_tier(setting, "host", self.card.name)
        store = ExpertStore.open(setting.store_path)
        check_fits_limit(setting, fused.computed_bytes(store.total_bytes, store, setting.dtype), self.card.name)
        device = torch.device(setting.device)
        model = shell_without_experts(setting, device)
        modules = expert_modules(model)
        for spec, tensors in fused.layers(store):
            held = {
                name: tensor.to(setting.dtype, memory_format=torch.contiguous_format, copy=True)
                for name, tensor in tensors.items()
            }
            cpu_offload(modules[spec.module], execution_device=device, state_dict=held)
        self._model = model
