"""DeepSpeed's ``init_inference``: all weights resident, with fused kernels for the model families it supports.

It has no slow tier, so it runs only where the process limit allows all weights in memory.  Kernel injection supports a
fixed list of older families; DeepSpeed wraps models of other families unchanged.  On a GPU the model is loaded into
host memory first and then moved, whole.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from transformers import AutoConfig, AutoModelForCausalLM

from baselines import fused
from baselines.contract import SAMPLES, CapabilityCard, NotSupported, Setting, SystemOptions, require
from baselines.deepspeed_common import EXTRA, DeepSpeedSystem
from baselines.hf import check_fits_limit
from baselines.registry import register
from specmoe.offload.store import ExpertStore


def _check_policy(model_path: Path) -> None:
    """Refuse kernel injection for a family that DeepSpeed would silently leave unchanged.

    Raises:
        NotSupported: it has no injection policy for the model's decoder layer.
    """
    policies = require("deepspeed.module_inject.replace_policy", EXTRA).replace_policies
    known = [policy.__name__.removeprefix("HF").removesuffix("LayerPolicy") for policy in policies]
    family = AutoConfig.from_pretrained(model_path).model_type
    if family.replace("_", "") not in [name.lower() for name in known]:
        raise NotSupported(
            f"DeepSpeed injects kernels only into {', '.join(known)}, not into {family}: use kernel_inject=false"
        )


@register
class DeepSpeedInferenceSystem(DeepSpeedSystem):
    """``deepspeed.init_inference`` on one process."""

    card: ClassVar[CapabilityCard] = CapabilityCard(
        name="deepspeed-inference",
        title="DeepSpeed init_inference",
        summary="all weights resident; fused kernels only for the families that DeepSpeed supports",
        grain="nothing",
        knows_budget=False,
        sampling=SAMPLES,
        tiers=("gpu", "ram"),
        devices=("cpu", "cuda"),
        slow_tiers=("disk", "host"),
        extra=EXTRA,
    )

    class Options(SystemOptions):
        kernel_inject: bool = False

    def prepare(self, setting: Setting) -> None:
        deepspeed = require("deepspeed", EXTRA)
        if self.options.kernel_inject:
            _check_policy(setting.model_path)
        store = ExpertStore.open(setting.store_path)
        loading = 2 * fused.computed_bytes(store.total_bytes, store, setting.dtype)  # the experts, and them fused
        check_fits_limit(setting, loading, self.card.name)
        self.open_group(setting)
        model = AutoModelForCausalLM.from_pretrained(setting.model_path, dtype=setting.dtype)
        engine = deepspeed.init_inference(
            model.eval(),
            dtype=setting.dtype,
            tensor_parallel={"tp_size": 1},
            replace_with_kernel_inject=self.options.kernel_inject,
        )
        self._model = engine.module  # the engine's destroy() is not called: it fails unless CUDA kernels were injected
