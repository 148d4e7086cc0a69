"""Systems that cannot run this comparison without a GPU, each with its reason, so that none just goes missing.

Their cards are listed and their cells recorded as ``not_supported``.  What is written here is what their
documentation and packages said in November 2026; an adapter replaces the entry once one of them can.
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
    register,
)


class _GpuOnly:
    """Refuses to be built; ``why`` is what the record says."""

    card: ClassVar[CapabilityCard]
    why: ClassVar[str]

    class Options(SystemOptions):
        pass

    def __init__(self, options: Any) -> None:
        pass

    def build(self, setting: Setting) -> None:
        raise NotSupported(self.why)

    def prepare(self, setting: Setting) -> None:
        raise NotSupported(self.why)

    def generate(self, request: Request) -> Generation:
        raise NotSupported(self.why)

    def close(self) -> None:
        pass


def _card(name: str, title: str, grain: Grain, tiers: tuple[Tier, ...]) -> CapabilityCard:
    return CapabilityCard(
        name=name,
        title=title,
        summary="not supported here, with the reason in its record",
        grain=grain,
        knows_budget=False,
        tiers=tiers,
    )


@register
class VllmSystem(_GpuOnly):
    """https://docs.vllm.ai (CPU backend; ``cpu_offload_gb``), vllm-project/vllm issues 33869 and 38256."""

    card = _card("vllm", "vLLM", "modules", ("gpu", "ram"))
    why = (
        "vLLM offloads weights and experts from a GPU to host memory (cpu_offload_gb); its CPU backend holds every "
        "weight in memory and has no slow tier to offload to"
    )


@register
class SglangSystem(_GpuOnly):
    """https://docs.sglang.io/platforms/cpu_server.html: from source or as a container, weights in memory."""

    card = _card("sglang", "SGLang", "modules", ("gpu", "ram"))
    why = (
        "SGLang's CPU engine (AMX kernels, built from source) holds every weight in memory; its weight offload "
        "(cpu_offload_gb) has a GPU as the other tier"
    )


@register
class KTransformersSystem(_GpuOnly):
    """https://github.com/kvcache-ai/ktransformers, issues 296 and 337: no CPU-only operation."""

    card = _card("ktransformers", "KTransformers", "experts", ("gpu", "ram"))
    why = (
        "KTransformers computes experts on the CPU beside a GPU that runs the rest of the model, and needs that GPU; "
        "all experts stay in host memory, there is no disk tier"
    )


@register
class MoeInfinitySystem(_GpuOnly):
    """https://github.com/EfficientMoE/MoE-Infinity: expert offloading for memory-constrained GPUs."""

    card = _card("moe-infinity", "MoE-Infinity", "experts", ("gpu", "ram", "disk"))
    why = (
        "MoE-Infinity caches experts in GPU memory and prefetches them from host memory; its runtime is built on CUDA "
        "and has no CPU device"
    )
