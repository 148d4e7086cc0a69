"""Hugging Face accelerate's CPU offload: the experts modules in host memory, moved whole at every visit.

Where there is no GPU, host memory is the device too: the hooks run but no byte crosses, and all experts
count against the process limit.  The card's grain is what moves where there is one.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from accelerate import cpu_offload

from baselines import fused
from baselines.contract import CapabilityCard, Setting, register
from baselines.hf import GreedySystem, check_room, shell_without_experts
from specmoe.model.checkpoint import expert_modules
from specmoe.offload.store import ExpertStore


@register
class AccelerateCpuSystem(GreedySystem):
    """``cpu_offload`` on every experts module, the rest on the device."""

    card: ClassVar[CapabilityCard] = CapabilityCard(
        name="accelerate-cpu",
        title="accelerate CPU offload",
        summary="cpu_offload on every experts module; hooks move whole modules from host memory",
        grain="modules",
        knows_budget=False,
        tiers=("gpu", "ram"),
    )

    def prepare(self, setting: Setting) -> None:
        device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
        store = ExpertStore.open(setting.store_path)
        check_room(setting, store.total_bytes, self.card.name)
        model = shell_without_experts(setting, device)
        modules = expert_modules(model)
        for spec, tensors in fused.layers(store):
            held = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
            cpu_offload(modules[spec.module], execution_device=device, state_dict=held)
        self._model = model
