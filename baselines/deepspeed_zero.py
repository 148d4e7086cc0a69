"""DeepSpeed ZeRO-Inference: stage 3 with every large parameter on NVMe (async_io) or in host memory.

ZeRO-3 gathers the parameters of a submodule before it runs.  In transformers 5 all experts of a block are two
parameters of one module, so a visit gathers the whole block, as for a MoE block marked as a ZeRO-3 leaf: the system
streams whole layers and is not an on-demand baseline.  On a CPU the rest of the model stays in host memory, as in every
system here; on a GPU it stays there, and experts are gathered to the GPU from NVMe or from pinned host memory.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from transformers import PreTrainedModel

from baselines import fused
from baselines.contract import SAMPLES, CapabilityCard, Setting, SystemOptions, require
from baselines.deepspeed_common import EXTRA, DeepSpeedSystem
from baselines.hf import check_fits_limit, check_tier, place_experts, shell_without_experts
from baselines.registry import register
from specmoe.model.checkpoint import expert_modules
from specmoe.offload.store import ExpertStore

_MIN_READ_BYTES, _MAX_READ_BYTES = 1 << 20, 8 << 20  # DeepSpeed swaps no parameter below the first


def read_bytes(store: ExpertStore, dtype: torch.dtype) -> int:
    """Size of one ``async_io`` read: the largest power of two, within bounds, that the smallest parameter fills."""
    smallest = min(t.numel() * dtype.itemsize for _, tensors in fused.layers(store) for t in tensors.values())
    return int(min(max(1 << (smallest.bit_length() - 1), _MIN_READ_BYTES), _MAX_READ_BYTES))


def offload_of(options: Any, setting: Setting) -> str:
    """Where experts rest, as DeepSpeed names it: ``nvme`` or ``cpu``, as the option says, else the cell's slow tier."""
    return str(options.offload or ("nvme" if setting.slow_tier == "disk" else "cpu"))


def resident(config: dict[str, Any], device: str) -> dict[str, Any]:
    """The configuration for what is not offloaded: parameters in host memory on a CPU, on the GPU itself otherwise."""
    zero = config["zero_optimization"]
    kept = {"offload_param": zero["offload_param"] | {"device": "cpu"}} if device == "cpu" else {}
    return config | {"zero_optimization": {k: v for k, v in zero.items() if k != "offload_param"} | kept}


def config(model: PreTrainedModel, setting: Setting, store: ExpertStore, options: Any) -> dict[str, Any]:
    """DeepSpeed's configuration: buffers for one block of experts, and with ``prefetch`` for the next one."""
    sizes = [[tensor.numel() for tensor in tensors.values()] for _, tensors in fused.layers(store)]
    block = max(sum(numels) for numels in sizes)
    rest = max(parameter.numel() for parameter in model.parameters() if not parameter.is_meta)
    blocks = 2 if options.prefetch else 1
    return {
        "train_micro_batch_size_per_gpu": 1,
        "bf16": {"enabled": setting.dtype == torch.bfloat16},
        "fp16": {"enabled": setting.dtype == torch.float16},
        "zero_optimization": {
            "stage": 3,
            "offload_param": {
                "device": offload_of(options, setting),
                "nvme_path": str(setting.scratch),
                "buffer_count": blocks * max(map(len, sizes)),
                "buffer_size": max(map(max, sizes)),
                "pin_memory": setting.device != "cpu",
            },
            "stage3_max_live_parameters": blocks * block,
            "stage3_max_reuse_distance": 0,
            "stage3_prefetch_bucket_size": block if options.prefetch else 0,
            "stage3_param_persistence_threshold": min(rest, min(map(min, sizes)) - 1),
        },
        "aio": {
            "block_size": read_bytes(store, setting.dtype),
            "queue_depth": 8,
            "intra_op_parallelism": 1,
            "overlap_events": True,
        },
    }


@register
class DeepSpeedZeroSystem(DeepSpeedSystem):
    """``deepspeed.initialize`` without an optimizer, parameters offloaded."""

    card: ClassVar[CapabilityCard] = CapabilityCard(
        name="deepspeed-zero",
        title="DeepSpeed ZeRO-Inference",
        summary="ZeRO stage 3, parameters on NVMe or in host memory; gathers all experts of a block in every pass",
        grain="layers",
        knows_budget=False,
        sampling=SAMPLES,
        build_options=("offload",),
        tiers=("gpu", "ram", "disk"),
        devices=("cpu", "cuda"),
        slow_tiers=("disk", "host"),
        extra=EXTRA,
    )

    class Options(SystemOptions):
        offload: Literal["nvme", "cpu"] | None = None
        prefetch: bool = True

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self._engine: Any = None
        self._swap: Path | None = None

    def operators(self, setting: Setting) -> Sequence[str]:
        return ["AsyncIOBuilder"] if offload_of(self.options, setting) == "nvme" else []

    def prepare(self, setting: Setting) -> None:
        deepspeed = require("deepspeed", EXTRA)
        store = ExpertStore.open(setting.store_path)
        offload = offload_of(self.options, setting)
        check_tier(setting, "disk" if offload == "nvme" else "host", f"{self.card.name} with offload={offload}")
        if offload == "cpu":
            nbytes = fused.computed_bytes(store.total_bytes, store, setting.dtype)
            check_fits_limit(setting, nbytes, f"{self.card.name} with offload=cpu")
        self.open_group(setting)
        self._swap = setting.scratch / "zero_stage_3"
        model = shell_without_experts(setting, torch.device(setting.device))
        chosen = config(model, setting, store, self.options)
        modules, swapper = expert_modules(model), None
        for spec, tensors in fused.layers(store):  # one block in memory at a time
            module = modules[spec.module]
            place_experts(module, {name: tensor.to(setting.dtype).contiguous() for name, tensor in tensors.items()})
            # the dtype comes from the config: given as an argument, float32 becomes bfloat16 on CPUs without fp16
            swapper = deepspeed.zero.Init(
                module=module, config_dict_or_path=chosen, param_swapper=swapper
            ).param_swapper
        deepspeed.zero.Init(module=model, config_dict_or_path=resident(chosen, setting.device))  # all but the experts
        self._engine, *_ = deepspeed.initialize(model=model, config=chosen)
        self._model = self._engine.module.eval()

    def close(self) -> None:
        if self._engine is not None:
            self._engine.destroy()
            self._engine = None
        super().close()
        if self._swap is not None:
            shutil.rmtree(self._swap, ignore_errors=True)
