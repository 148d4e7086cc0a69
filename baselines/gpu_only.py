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
    """https://docs.vllm.ai: getting started, CPU; configuration, ``cpu_offload_gb``."""

    card = _card("vllm", "vLLM", "modules", ("gpu", "ram"))
    why = (
        "vLLM's weight offload (cpu_offload_gb, offload of expert weights) moves weights between a GPU and host memory; "
        "its CPU backend holds every weight in memory and has no slow tier to offload to. Its wheels also pin "
        "another torch than the reference runs on."
    )


@register
class SglangSystem(_GpuOnly):
    """https://docs.sglang.ai: platforms, CPU servers."""

    card = _card("sglang", "SGLang", "modules", ("gpu", "ram"))
    why = (
        "SGLang's CPU backend (AMX kernels, built from source) holds every weight in memory; its offload options "
        "(cpu_offload_gb) need a GPU as the other tier."
    )


@register
class KTransformersSystem(_GpuOnly):
    """https://github.com/kvcache-ai/ktransformers."""

    card = _card("ktransformers", "KTransformers", "experts", ("gpu", "ram"))
    why = (
        "KTransformers computes experts on the CPU from host memory and the rest on a GPU, which it needs; it keeps "
        "all experts in host memory and has no disk tier."
    )


@register
class MoeInfinitySystem(_GpuOnly):
    """https://github.com/EfficientMoE/MoE-Infinity."""

    card = _card("moe-infinity", "MoE-Infinity", "experts", ("gpu", "ram", "disk"))
    why = (
        "MoE-Infinity's expert cache and prefetcher are CUDA extensions over GPU memory, and it replaces modeling code "
        "of transformers 4; it has no CPU device."
    )
