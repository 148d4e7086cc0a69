"""DeepSpeed's ``init_inference``: resident, with fused kernels or tensor parallelism where it knows the model.

It has no slow tier: all weights are in memory, so it runs only where the process limit allows that.  Kernel
injection knows a fixed list of older families; for the others DeepSpeed wraps the model as it is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from transformers import AutoConfig, AutoModelForCausalLM

from baselines.contract import CapabilityCard, NotSupported, Setting, SystemOptions, register, require
from baselines.deepspeed_common import EXTRA, SingleProcessGroup, compile_ops
from baselines.hf import GreedySystem, check_room
from specmoe.offload.store import ExpertStore


def _check_policy(model_path: Path) -> None:
    """Refuse kernel injection for a family DeepSpeed would silently leave as it is.

    Raises:
        NotSupported: it has no policy for the model's decoder layer.
    """
    policies = require("deepspeed.module_inject.replace_policy", EXTRA).replace_policies
    known = [policy.__name__.removeprefix("HF").removesuffix("LayerPolicy") for policy in policies]
    family = AutoConfig.from_pretrained(model_path).model_type
    if family.replace("_", "") not in [name.lower() for name in known]:
        raise NotSupported(
            f"DeepSpeed injects kernels only into {', '.join(known)}, not into {family}: use kernel_inject=false"
        )


@register
class DeepSpeedInferenceSystem(GreedySystem):
    """``deepspeed.init_inference`` on one process."""

    card: ClassVar[CapabilityCard] = CapabilityCard(
        name="deepspeed-inference",
        title="DeepSpeed init_inference",
        summary="all weights resident; fused kernels only for the families DeepSpeed has a policy for",
        grain="nothing",
        knows_budget=False,
        tiers=("gpu", "ram"),
        extra=EXTRA,
    )

    class Options(SystemOptions):
        kernel_inject: bool = False

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self._group: SingleProcessGroup | None = None

    def build(self, setting: Setting) -> None:
        compile_ops(setting, [])
        super().build(setting)

    def prepare(self, setting: Setting) -> None:
        deepspeed = require("deepspeed", EXTRA)
        if self.options.kernel_inject:
            _check_policy(setting.model_path)
        check_room(setting, ExpertStore.open(setting.store_path).total_bytes, self.card.name)
        self._group = SingleProcessGroup(setting)
        model = AutoModelForCausalLM.from_pretrained(setting.model_path, dtype=setting.dtype)
        engine = deepspeed.init_inference(
            model.eval(),
            dtype=setting.dtype,
            tensor_parallel={"tp_size": 1},
            replace_with_kernel_inject=self.options.kernel_inject,
        )
        self._model = engine.module

    def close(self) -> None:
        super().close()  # not the engine's destroy(): it fails unless CUDA kernels were injected
        if self._group is not None:
            self._group.close()
            self._group = None
