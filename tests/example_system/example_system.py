"""A complete external system that reads a layer's experts from disk when the layer runs, and drops them after it.

``build`` writes one file per MoE layer; two hooks around each experts module load and drop it.  It uses only the
contract of specmoe-bench; the model is plain transformers.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field
from safetensors.torch import load, save_file
from transformers import AutoModelForCausalLM

from baselines.contract import (
    CapabilityCard,
    Generation,
    NotSupported,
    Request,
    Setting,
    SystemOptions,
)
from baselines.counters import Counters
from baselines.registry import register


def experts(model: Any) -> dict[str, Any]:
    """Experts modules by name: transformers 5 keeps all experts of a layer in one."""
    return {name: module for name, module in model.named_modules() if hasattr(module, "gate_up_proj")}


@register
class ExampleReload:
    card: ClassVar[CapabilityCard] = CapabilityCard(
        name="example-reload",
        title="reload per layer",
        summary="reads each layer's experts from a file when the layer runs and keeps none",
        grain="modules",
        knows_budget=True,
    )

    class Options(SystemOptions):
        passes: int = Field(default=1, ge=1, description="how many layers' worth of budget to ask for")

    def __init__(self, options: Any) -> None:
        self._options = options
        self._model: Any = None
        self._read_bytes, self._read_s, self._layer_bytes = 0, 0.0, 0

    def build(self, setting: Setting) -> None:
        """Runs without a limit, so the whole model may be in memory here."""
        if (setting.scratch / "done").exists():
            return
        model = AutoModelForCausalLM.from_pretrained(setting.model_path, dtype=setting.dtype)
        for name, module in experts(model).items():
            save_file(module.state_dict(), setting.scratch / f"{name}.safetensors")
            for parameter in module.parameters():
                parameter.data = torch.empty(0, dtype=setting.dtype)
        torch.save(model, setting.scratch / "rest.pt")
        (setting.scratch / "done").touch()

    def prepare(self, setting: Setting) -> None:
        files = {file.stem: file for file in setting.scratch.glob("*.safetensors")}
        if not files:
            raise NotSupported(f"{setting.scratch} was not built from a MoE model: choose another model")
        self._layer_bytes = max(file.stat().st_size for file in files.values())
        wanted, budget = self._options.passes * self._layer_bytes, setting.expert_budget_bytes
        if budget is not None and budget < wanted:
            raise NotSupported(f"a layer needs {wanted} bytes, the budget is {budget}: raise expert_budget")
        self._model = torch.load(setting.scratch / "rest.pt", weights_only=False)
        for name, module in experts(self._model).items():
            module.register_forward_pre_hook(lambda module, args, file=files[name]: self._load(module, file))
            module.register_forward_hook(lambda module, args, output: self._drop(module))

    def _load(self, module: Any, file: Path) -> None:
        started = time.perf_counter()
        data = file.read_bytes()
        for name, tensor in load(data).items():
            module.get_parameter(name).data = tensor
        self._read_bytes += len(data)
        self._read_s += time.perf_counter() - started

    def _drop(self, module: Any) -> None:
        for parameter in module.parameters():
            parameter.data = torch.empty(0, dtype=parameter.dtype)

    @torch.no_grad()
    def generate(self, request: Request) -> Generation:
        """Greedy decoding of a ragged batch: padding is masked and positions start at each row's first token."""
        mask, new, cache = request.attention_mask, [], None
        ids, positions = request.input_ids, (mask.cumsum(1) - 1).clamp(min=0)
        for step in range(request.new_tokens):
            output = self._model(
                input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
            )
            cache, ids = output.past_key_values, output.logits[:, -1:].argmax(-1)
            new.append(ids)
            mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
            positions = positions[:, -1:] + 1
            request.report_step(step)
            if step == 0:
                request.on_prefill_done()
        counters = Counters(decode_steps=request.new_tokens - 1, tokens_per_step=1.0)
        counters.peak_expert_bytes, counters.phases_s = self._layer_bytes, {"read": self._read_s}
        return Generation(request.cut(torch.cat(new, dim=1)), counters)

    def close(self) -> None:
        self._model = None
