"""transformers over memory-mapped safetensors: the kernel's page cache, under the limit, decides what moves.

Checkpoints on the hub hold one key per expert, which the loader would copy into fused tensors.  ``build`` writes them
fused, so that the mapped file is the parameter and nothing is copied; for the same reason in the compute dtype.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from baselines import fused
from baselines.contract import SAMPLES, CapabilityCard, Setting
from baselines.hf import ExpertsOptions, TransformersSystem, place_experts, shell_without_experts
from baselines.registry import register
from specmoe.files import folder_appears
from specmoe.model.checkpoint import expert_modules
from specmoe.model.convert import open_or_build

_FOLDER = "fused"


@register
class MmapSystem(TransformersSystem):
    """Experts as mapped safetensors parameters, everything else in memory."""

    card: ClassVar[CapabilityCard] = CapabilityCard(
        name="mmap",
        title="transformers, mmap",
        summary="experts are memory-mapped safetensors; the page cache decides which stay in memory",
        grain="pages",
        knows_budget=False,
        sampling=SAMPLES,
    )

    Options = ExpertsOptions

    def build(self, setting: Setting) -> None:
        folder = setting.scratch / _FOLDER
        if folder.exists():
            return
        store = open_or_build(setting.model_path, setting.store_path, setting.stored, compute_dtype=setting.dtype)
        with folder_appears(folder) as partial:
            for spec, tensors in fused.layers(store):
                named = {f"{spec.module}.{name}": t.to(setting.dtype).contiguous() for name, t in tensors.items()}
                save_file(named, partial / f"layer_{spec.model_layer:03d}.safetensors")

    def prepare(self, setting: Setting) -> None:
        model = shell_without_experts(setting, torch.device("cpu"))
        modules = expert_modules(model)
        for file in sorted((setting.scratch / _FOLDER).glob("*.safetensors")):
            with safe_open(file, framework="pt") as opened:
                for key in opened.keys():  # noqa: SIM118 (safe_open is no mapping)
                    module, _, name = key.rpartition(".")
                    place_experts(modules[module], {name: opened.get_tensor(key)})
        model.set_experts_implementation(self.options.experts)
        self._model = model
