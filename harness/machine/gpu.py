"""GPU memory of a process, PCIe rates, power and energy from the NVIDIA driver (NVML)."""

from __future__ import annotations

import contextlib
import statistics
from typing import Any


class Gpu:
    """Samples of NVML; without NVML every figure is None.

    Rates and power are of the GPUs that the process was seen on.  The driver takes 20 ms to measure a PCIe rate, so
    call ``sample_rates`` less often than ``sample_memory``.
    """

    def __init__(self, nvml: Any = None) -> None:
        self.peak_bytes: int | None = None
        self._nvml = nvml
        self._handles: list[Any] = []
        self._used: set[int] = set()
        self._energy_mj: dict[int, int] = {}
        self._power_w: list[float] = []
        self._to_gpu: list[float] = []
        self._from_gpu: list[float] = []
        with contextlib.suppress(Exception):  # no library, driver or GPU
            if self._nvml is None:
                import pynvml

                self._nvml = pynvml
            self._nvml.nvmlInit()
            self._handles = [
                self._nvml.nvmlDeviceGetHandleByIndex(index) for index in range(self._nvml.nvmlDeviceGetCount())
            ]
        for index, handle in enumerate(self._handles):
            with contextlib.suppress(Exception):
                self._energy_mj[index] = self._nvml.nvmlDeviceGetTotalEnergyConsumption(handle)

    @property
    def count(self) -> int:
        return len(self._handles)

    def sample_memory(self, pid: int) -> None:
        """Sample the memory of the process on all GPUs."""
        used = 0
        for index, handle in enumerate(self._handles):
            with contextlib.suppress(Exception):
                ours = [p for p in self._nvml.nvmlDeviceGetComputeRunningProcesses(handle) if p.pid == pid]
                if ours:
                    self._used.add(index)
                used += sum(p.usedGpuMemory or 0 for p in ours)
        if self._used:
            self.peak_bytes = max(self.peak_bytes or 0, used)

    def sample_rates(self) -> None:
        """Sample power and PCIe rates of the GPUs in use."""
        if not self._used:
            return
        with contextlib.suppress(Exception):
            handles = [self._handles[index] for index in self._used]
            self._power_w.append(sum(self._nvml.nvmlDeviceGetPowerUsage(handle) for handle in handles) / 1e3)
            for kind, rates in (
                (self._nvml.NVML_PCIE_UTIL_RX_BYTES, self._to_gpu),
                (self._nvml.NVML_PCIE_UTIL_TX_BYTES, self._from_gpu),
            ):
                kib_s = sum(self._nvml.nvmlDeviceGetPcieThroughput(handle, kind) for handle in handles)
                rates.append(kib_s * 1024 / 1e9)

    def summary(self) -> dict[str, Any]:
        """Fields of ``reports.results.record.Usage``."""
        return {
            "peak_gpu_bytes": self.peak_bytes,
            "gpu_power_w": _mean(self._power_w),
            "pcie_to_gpu_gb_s": _mean(self._to_gpu),
            "pcie_from_gpu_gb_s": _mean(self._from_gpu),
            "gpu_energy_j": self._energy_j(),
        }

    def _energy_j(self) -> float | None:
        joules = None
        for index in self._used & self._energy_mj.keys():
            with contextlib.suppress(Exception):
                now = self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handles[index])
                joules = (joules or 0.0) + (now - self._energy_mj[index]) / 1e3
        return joules


def _mean(values: list[float]) -> float | None:
    return statistics.fmean(values) if values else None
