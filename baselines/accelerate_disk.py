"""Hugging Face accelerate's disk offload: experts modules on disk, mapped by hooks around ``forward``.

Its grain is the module: transformers 5 keeps all experts of a layer in one module, and the hook maps all of them in
every pass.  On a CPU the hook maps files, so the page cache and the experts implementation decide which bytes are
read; the kernel's counters record how many.  On a GPU the hook reads each tensor of the module
from its file to the device.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from accelerate import dispatch_model
from transformers import AutoModelForCausalLM, PreTrainedModel

from baselines.contract import SAMPLES, CapabilityCard, NotSupported, Setting
from baselines.hf import TransformersSystem, check_interface, shell_without_experts
from baselines.registry import register
from specmoe.files import folder_appears
from specmoe.model.checkpoint import build_shell, expert_modules

_FOLDER = "offload"


def device_map_of(model: PreTrainedModel, device: str = "cpu") -> dict[str, str]:
    """Experts modules on disk; every other module that owns weights or buffers on ``device``."""
    experts = expert_modules(model)
    device_map = dict.fromkeys(experts, "disk")
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{expert}.") for expert in experts)
        owns = any(True for _ in module.parameters(recurse=False)) or any(True for _ in module.buffers(recurse=False))
        if name not in experts and not inside and owns:
            device_map[name] = device
    return device_map


def dispatch_arguments(model: PreTrainedModel, setting: Setting) -> dict[str, Any]:
    """Arguments of ``dispatch_model``: what is offloaded to which files, and where the rest is and computes."""
    folder = setting.scratch / _FOLDER
    dtype = str(setting.dtype).removeprefix("torch.")
    index = {
        file.stem: {"safetensors_file": str(file), "weight_name": file.stem, "dtype": dtype}
        for file in folder.glob("*.safetensors")
    }
    return {
        "device_map": device_map_of(model, setting.device),
        "main_device": setting.device,
        "offload_dir": folder,
        "offload_index": index,
        "force_hooks": True,
    }


@register
class AccelerateDiskSystem(TransformersSystem):
    """``device_map`` with every experts module on disk, the rest in memory."""

    card: ClassVar[CapabilityCard] = CapabilityCard(
        name="accelerate-disk",
        title="accelerate disk offload",
        summary="device_map='disk' for every experts module: hooks map whole modules from disk",
        grain="modules",
        knows_budget=False,
        tiers=("gpu", "ram", "disk"),
        devices=("cpu", "cuda"),
        sampling=SAMPLES,
    )

    def build(self, setting: Setting) -> None:
        """Let transformers write its offload folder once, without a limit."""
        folder = setting.scratch / _FOLDER
        if folder.exists():
            return
        shell = build_shell(setting.model_path)
        check_interface(shell)
        if type(shell.config) not in AutoModelForCausalLM._model_mapping:
            raise NotSupported(
                f"{type(shell).__name__} is a vision-language model, this system loads causal language models alone: "
                "compare with hf-resident, naive or mmap"
            )
        with folder_appears(folder) as partial:
            AutoModelForCausalLM.from_pretrained(
                setting.model_path,
                dtype=setting.dtype,
                device_map=device_map_of(shell),
                offload_folder=partial,
            )

    def prepare(self, setting: Setting) -> None:
        model = shell_without_experts(setting, torch.device(setting.device))
        self._model = dispatch_model(model, **dispatch_arguments(model, setting))
