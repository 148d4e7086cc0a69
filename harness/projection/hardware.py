"""Machines: rates of memory, link and processor and fixed costs, each with its origin."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Origin = Literal["paper", "measured here", "assumed", "public"]


@dataclass(frozen=True)
class Input:
    """One input of a projection; origin ``public`` means a data sheet or a published configuration."""

    name: str
    value: float
    unit: str
    origin: Origin
    note: str = ""


@dataclass(frozen=True)
class Hardware:
    """Rates and fixed costs of one machine.

    Experts move over the ``link``; compute reads weights from ``memory``.  ``layer_launch`` is the fixed cost of a
    layer (kernel launches, Python), ``expert_launch`` that of each expert in it, ``token`` the bookkeeping per token
    of a pass and ``cycle`` that per cycle.
    """

    name: str
    title: str
    link_gb_s: Input
    link_latency_s: Input
    memory_gb_s: Input
    gemm_tflop_s: Input
    layer_launch_s: Input
    expert_launch_s: Input
    token_s: Input
    cycle_s: Input
    device_memory_gb: Input

    @property
    def inputs(self) -> list[Input]:
        return [value for value in vars(self).values() if isinstance(value, Input)]

    def with_link(self, gb_s: float, origin: Origin, note: str) -> Hardware:
        """The same machine with another link rate."""
        return replace(self, link_gb_s=replace(self.link_gb_s, value=gb_s, origin=origin, note=note))


def _machine(
    name: str,
    title: str,
    link: tuple[float, Origin, str],
    latency_s: float,
    memory: tuple[float, str],
    gemm: tuple[float, str],
    device_gb: float,
    launch_s: tuple[float, float] = (200e-6, 60e-6),
) -> Hardware:
    eager = "eager PyTorch: about a dozen launches a layer, four an expert"
    return Hardware(
        name,
        title,
        Input("link rate", link[0], "GB/s", link[1], link[2]),
        Input("link latency", latency_s, "s", "assumed", "per transfer"),
        Input("memory bandwidth", memory[0], "GB/s", "public", memory[1]),
        Input("GEMM rate", gemm[0], "TFLOP/s", "public", gemm[1]),
        Input("launch per layer", launch_s[0], "s", "assumed", eager),
        Input("launch per expert", launch_s[1], "s", "assumed", eager),
        Input("per token", 0.0, "s", "assumed", "bookkeeping is batched on a GPU"),
        Input("per cycle", 1e-3, "s", "assumed", "acceptance and bookkeeping"),
        Input("device memory", device_gb, "GB", "public"),
    )


H100_PCIE5 = _machine(
    "h100-pcie5",
    "H100 96 GB, PCIe 5.0",
    (64.0, "paper", "PCIe 5.0 x16, one way, nominal"),
    10e-6,
    (3350.0, "HBM3 data sheet"),
    (700.0, "bf16 dense, about 70 % of the data sheet's 989"),
    96.0,
)
RTX4090_PCIE4 = _machine(
    "rtx4090-pcie4",
    "RTX 4090 24 GB, PCIe 4.0",
    (25.0, "assumed", "of PCIe 4.0 x16's 32 GB/s with pinned memory"),
    10e-6,
    (1008.0, "GDDR6X data sheet"),
    (120.0, "bf16 dense, about 70 % of the data sheet's 165"),
    24.0,
)
LAPTOP_NVME = _machine(
    "laptop-nvme",
    "laptop GPU 8 GB, experts on NVMe",
    (3.5, "assumed", "PCIe 3.0 NVMe, sequential reads of megabytes"),
    100e-6,
    (256.0, "GDDR6, 128 bits"),
    (30.0, "fp16 dense"),
    8.0,
)
PROFILES = {machine.name: machine for machine in (H100_PCIE5, RTX4090_PCIE4, LAPTOP_NVME)}
