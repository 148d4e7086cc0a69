"""GPU memory of a process, PCIe rates, power and energy from the NVIDIA driver (NVML)."""

from __future__ import annotations

import contextlib
import statistics
from typing import Any


class Gpu:
    """Samples of NVML; without NVML every figure is None, and ``memory_reason`` says why there is no peak.

    Rates and power are of the GPUs that the process was seen on.  The driver takes 20 ms to measure a PCIe rate, so
    call ``sample_rates`` less often than ``sample_memory``.
    """

    def __init__(self, nvml: Any = None) -> None:
        self.memory_reason: str | None = None
        self._peak_bytes: int | None = None
        self._others = 0
        self._nvml = nvml
        self._handles: list[Any] = []
        self._used: set[int] = set()
        self._energy_mj: dict[int, int] = {}
        self._power_w: list[float] = []
        self._to_gpu: list[float] = []
        self._from_gpu: list[float] = []
        try:
            if self._nvml is None:
                import pynvml

                self._nvml = pynvml
            self._nvml.nvmlInit()
            self._handles = [
                self._nvml.nvmlDeviceGetHandleByIndex(index) for index in range(self._nvml.nvmlDeviceGetCount())
            ]
        except Exception as error:  # no library, driver or GPU
            self.memory_reason = f"NVML is not available ({error})"
        for index, handle in enumerate(self._handles):
            with contextlib.suppress(Exception):
                self._energy_mj[index] = self._nvml.nvmlDeviceGetTotalEnergyConsumption(handle)

    @property
    def count(self) -> int:
        return len(self._handles)

    @property
    def peak_bytes(self) -> int | None:
        """Most memory of the process at any sample; None where any sample could not be read."""
        return None if self.memory_reason else self._peak_bytes

    def sample_memory(self, pid: int) -> None:
        """Sample the memory of the process on all GPUs."""
        used, seen = 0, False
        for index, handle in enumerate(self._handles):
            try:
                processes = self._nvml.nvmlDeviceGetComputeRunningProcesses(handle)
            except Exception as error:
                self.memory_reason = f"NVML does not list the processes on GPU {index} ({error})"
                continue
            ours = [process.usedGpuMemory for process in processes if process.pid == pid]
            self._others = max(self._others, len(processes) - len(ours))
            if not ours:
                continue
            seen = True
            self._used.add(index)
            if None in ours:
                self.memory_reason = f"NVML does not say how much memory a process uses on GPU {index}"
            used += sum(nbytes or 0 for nbytes in ours)
        if seen:
            self._peak_bytes = max(self._peak_bytes or 0, used)

    def _why_no_peak(self) -> str | None:
        if self.memory_reason or self._used:
            return self.memory_reason
        hidden = f"only {self._others} others: in a container it gives the host's process ids" if self._others else ""
        return f"NVML did not list the process on a GPU{hidden and ', '}{hidden}"

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
            "gpu_memory_reason": self._why_no_peak(),
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
