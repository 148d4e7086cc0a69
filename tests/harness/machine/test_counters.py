"""Energy, memory and GPU counters give their figures, or the reason why there are none."""

from __future__ import annotations

import os
import re
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


class _Hidden(_Nvml):
    """A driver that answers a query for processes in its own way."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self._answer = answer

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[Any]:
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer if handle == 1 else []


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (RuntimeError("Not Supported"), r"does not list the processes on GPU 1 \(Not Supported\)"),
        ([SimpleNamespace(pid=7, usedGpuMemory=None)], "does not say how much memory a process uses on GPU 1"),
        ([SimpleNamespace(pid=4711, usedGpuMemory=5)], "only 1 others: in a container it gives the host's process ids"),
        ([], "NVML did not list the process on a GPU$"),
    ],
)
def test_gpu_memory_that_the_driver_does_not_tell_is_missing_with_its_reason(answer: Any, reason: str) -> None:
    gpu = Gpu(_Hidden(answer))
    gpu.sample_memory(7)
    summary = gpu.summary()
    assert summary["peak_gpu_bytes"] is None
    assert re.search(reason, summary["gpu_memory_reason"])


def test_one_sample_without_an_answer_leaves_no_peak() -> None:
    driver = _Hidden([SimpleNamespace(pid=7, usedGpuMemory=100)])
    gpu = Gpu(driver)
    gpu.sample_memory(7)
    assert gpu.summary()["peak_gpu_bytes"] == 100
    assert gpu.summary()["gpu_memory_reason"] is None
    driver._answer = [SimpleNamespace(pid=7, usedGpuMemory=None)]
    gpu.sample_memory(7)
    assert gpu.summary()["peak_gpu_bytes"] is None


def test_a_machine_without_nvml_says_so() -> None:
    class Absent:
        def nvmlInit(self) -> None:
            raise OSError("libnvidia-ml.so.1: cannot open shared object file")

    assert "NVML is not available (libnvidia-ml" in Gpu(Absent()).summary()["gpu_memory_reason"]
