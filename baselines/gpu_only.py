"""Systems that need a GPU for this comparison, each with its reason, so that none is missing without an explanation.

Their cards are listed and their cells recorded as ``not_supported``, on a GPU too: three of them are servers, which the
system ``endpoint`` measures.  The reasons are those of their documentation and packages in November 2026; an adapter
replaces an entry once the system can run here.
"""

from __future__ import annotations

from typing import Any, ClassVar

from baselines.contract import (
    CapabilityCard,
    Generation,
    Grain,
    NotSupported,
    Request,
    Setting,
    SystemOptions,
    Tier,
)
from baselines.registry import register


class _GpuOnly:
    """Refuses every call with ``reason``, which the record holds."""

    card: ClassVar[CapabilityCard]
    reason: ClassVar[str]
    Options: ClassVar[type[SystemOptions]] = SystemOptions

    def __init__(self, options: Any) -> None:
        pass

    def build(self, setting: Setting) -> None:
        raise NotSupported(self.reason)

    def prepare(self, setting: Setting) -> None:
        raise NotSupported(self.reason)

    def generate(self, request: Request) -> Generation:
        raise NotSupported(self.reason)

    def close(self) -> None:
        pass


def _card(name: str, title: str, grain: Grain, tiers: tuple[Tier, ...]) -> CapabilityCard:
    return CapabilityCard(
        name=name,
        title=title,
        summary="no adapter: its record holds the reason",
        grain=grain,
        knows_budget=False,
        tiers=tiers,
        devices=("cpu", "cuda"),
        slow_tiers=("disk", "host", "paced"),
        run_on=(),
    )


@register
class VllmSystem(_GpuOnly):
    """https://docs.vllm.ai (CPU backend; ``cpu_offload_gb``), vllm-project/vllm issues 33869 and 38256."""

    card = _card("vllm", "vLLM", "modules", ("gpu", "ram"))
    reason = (
        "vLLM offloads weights and experts from a GPU to host memory (cpu_offload_gb); its CPU backend holds every "
        "weight in memory and has no slower tier to offload to. On a GPU measure its server: system endpoint"
    )


@register
class SglangSystem(_GpuOnly):
    """https://docs.sglang.io/platforms/cpu_server.html: from source or as a container, weights in memory."""

    card = _card("sglang", "SGLang", "modules", ("gpu", "ram"))
    reason = (
        "SGLang's CPU engine (AMX kernels, built from source) holds every weight in memory; its weight offload "
        "(cpu_offload_gb) moves weights between host memory and a GPU. On a GPU measure its server: system endpoint"
    )


@register
class KTransformersSystem(_GpuOnly):
    """https://github.com/kvcache-ai/ktransformers, issues 296 and 337: no CPU-only operation."""

    card = _card("ktransformers", "KTransformers", "experts", ("gpu", "ram"))
    reason = (
        "KTransformers computes experts on the CPU and the rest of the model on a GPU, which it requires; all experts "
        "stay in host memory, there is no disk tier. On a GPU measure its server: system endpoint"
    )


@register
class MoeInfinitySystem(_GpuOnly):
    """https://github.com/EfficientMoE/MoE-Infinity: expert offloading for memory-constrained GPUs."""

    card = _card("moe-infinity", "MoE-Infinity", "experts", ("gpu", "ram", "disk"))
    reason = (
        "MoE-Infinity caches experts in GPU memory and prefetches them from host memory; its runtime is built on CUDA "
        "and has no CPU device, so an adapter could not be run here"
    )
