"""Energy, memory and GPU counters give their figures, or the reason why there are none."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.machine import perf_events
from harness.machine.energy import Rapl
from harness.machine.gpu import Gpu
from harness.machine.perf_events import MemoryCounters, encode


def test_package_energy_is_counted_across_a_wrap(tmp_path: Path) -> None:
    zone = tmp_path / "intel-rapl:0"
    (zone / "intel-rapl:0:0").mkdir(parents=True)
    (zone / "max_energy_range_uj").write_text("1000000\n")
    (zone / "energy_uj").write_text("900000\n")
    rapl = Rapl(tmp_path)
    before = rapl.read_uj()
    (zone / "energy_uj").write_text("100000\n")
    assert rapl.joules_since(before) == pytest.approx(0.2)
    assert "virtual machines hide them" in Rapl(tmp_path / "none").reason


def test_an_event_is_encoded_by_the_kernel_s_formats() -> None:
    formats = {"event": "config:0-7", "umask": "config:8-15"}
    assert encode("event=0x04,umask=0x03\n", formats) == 0x0304
    with pytest.raises(ValueError, match="'mystery' is not understood"):
        encode("mystery=1", formats)


def test_the_counter_system_call_counts() -> None:
    try:
        file = perf_events.open_event(1, 0, 0)  # a software event, the clock of CPU 0: there on every machine
    except OSError as error:
        pytest.skip(f"not permitted: {error}")
    first = perf_events.read_event(file)
    time.sleep(0.02)
    assert perf_events.read_event(file) - first > 10_000_000
    os.close(file)


def test_memory_counters_say_why_there_are_none(tmp_path: Path) -> None:
    assert "no memory-controller counters" in MemoryCounters(tmp_path).reason
    (tmp_path / "uncore_imc_0").mkdir()
    counters = MemoryCounters(tmp_path)
    assert not counters.available
    assert "cannot be opened" in counters.reason
    assert counters.total_bytes() is None


class _Nvml:
    """A driver with two GPUs; the process is on the second."""

    NVML_PCIE_UTIL_RX_BYTES, NVML_PCIE_UTIL_TX_BYTES = 1, 0

    def __init__(self) -> None:
        self.energy_mj = 1000

    def nvmlInit(self) -> None: ...

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[Any]:
        return [SimpleNamespace(pid=7, usedGpuMemory=100)] if handle == 1 else [SimpleNamespace(pid=8, usedGpuMemory=5)]

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:
        return (handle + 1) * 1000

    def nvmlDeviceGetPcieThroughput(self, handle: int, kind: int) -> int:
        return 1_000_000 if kind == self.NVML_PCIE_UTIL_RX_BYTES else 500_000

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:
        self.energy_mj += 500
        return self.energy_mj


def test_gpu_figures_are_of_the_gpus_the_process_is_on() -> None:
    gpu = Gpu(_Nvml())
    gpu.sample_rates()
    assert gpu.summary()["gpu_power_w"] is None, "not on any GPU yet"
    gpu.sample_memory(7)
    gpu.sample_rates()
    summary = gpu.summary()
    assert summary["peak_gpu_bytes"] == 100
    assert summary["gpu_power_w"] == 2.0
    assert summary["pcie_to_gpu_gb_s"] == pytest.approx(1.024)
    assert summary["pcie_from_gpu_gb_s"] == pytest.approx(0.512)
    assert summary["gpu_energy_j"] > 0
