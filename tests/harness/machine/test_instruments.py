"""Calibration, doctor, throttle, scopes, energy, GPU and memory counters: what they read and what they say."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from harness.cli import main as cli
from harness.machine import calibrate, ceilings, doctor, limits, perf_events, scopes
from harness.machine.energy import Rapl
from harness.machine.gpu import Gpu
from harness.machine.limits import MemoryLimit, detect
from harness.machine.page_cache import drop_page_cache
from harness.machine.perf_events import MemoryCounters, encode
from harness.machine.throttle import Throttle, ThrottleError, block_device
from reports.results.record import Ceilings

SUPPORT = detect()
KEPT = Ceilings(date="2026-01-01T00:00:00+00:00", disk_read_gb_s=2.0, memory_gb_s=10.0)


def test_a_calibration_measures_every_ceiling_and_cleans_up(cache: Path) -> None:
    lines: list[str] = []
    measured = calibrate.calibrate(1, size_bytes=32 << 20, show=lines.append)
    assert measured.dram_copy_gb_s > 0.05
    assert measured.memory_gb_s > measured.dram_copy_gb_s * 0.5
    assert set(measured.gemm_tflop_s) == {"float32", "bfloat16", "float16"}
    assert (measured.pcie_to_gpu_gb_s is not None) == torch.cuda.is_available()
    assert len(lines) == 8
    assert list(cache.iterdir()) == []


def test_a_calibration_is_kept_and_the_last_of_this_machine_is_found(cache: Path) -> None:
    assert ceilings.latest() is None
    ceilings.store(KEPT)
    ceilings.store(KEPT.model_copy(update={"disk_read_gb_s": 3.0}))
    path = ceilings.path()
    path.write_text(path.read_text().replace("]\n", ', {"machine": {"cpu": "another"}, "ceilings": {"date": "x"}}]\n'))
    assert ceilings.latest().disk_read_gb_s == 3.0
    path.write_text("[")
    with pytest.raises(ValueError, match="delete it and run `specmoe-bench calibrate`"):
        ceilings.latest()


def test_a_full_disk_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="SPECMOE_CACHE"):
        calibrate.disk_read_gb_s(tmp_path, 1 << 60)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("kib", "fine"), [(128, True), (None, True), (8192, False)])
def test_doctor_warns_of_a_read_ahead_that_slows_mapped_files(
    kib: int | None, fine: bool, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.machine.environment.read_ahead_kib", lambda folder: kib)
    (found,) = [check for check in doctor.examine() if check.name == "read-ahead"]
    assert found.ok is fine
    assert "map files" in found.fix


def test_doctor_says_how_to_fix_what_is_missing(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checks = doctor.examine()
    assert {"memory limit", "disk throttle", "O_DIRECT", "calibration", "PSS", "CPU energy"} <= {c.name for c in checks}
    assert all(check.fix for check in checks if not check.ok)
    assert cli.main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert text.count("fix: ") == sum(not c.ok for c in doctor.examine())
    assert "specmoe-bench calibrate" in text


THROTTLED_READ = """
import mmap, os, sys, time
sys.stdin.readline()
file, buffer = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT), mmap.mmap(-1, 1 << 20)
started = time.perf_counter()
for block in range(24):
    os.preadv(file, [buffer], block << 20)
print(time.perf_counter() - started)
"""


def test_the_kernel_holds_a_worker_to_the_disk_throttle(tmp_path: Path) -> None:
    file = tmp_path / "data"
    file.write_bytes(os.urandom(24 << 20))
    drop_page_cache([file])
    try:
        throttle = Throttle.of(tmp_path, 16 << 20)
        limit = MemoryLimit(None, "throttle", SUPPORT, throttle)
        with limit:
            command = limit.command([sys.executable, "-c", THROTTLED_READ, str(file)])
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            limit.add(process.pid)
            seconds = float(process.communicate("go\n", timeout=60)[0])
            assert limit.report().disk_read_limit_bytes_s == 16 << 20
    except ThrottleError as error:
        pytest.skip(f"no disk throttle here: {error}")
    assert seconds > 1.0, "24 MiB at 16 MiB/s"


def test_a_throttle_that_cannot_be_enforced_is_an_error(tmp_path: Path) -> None:
    none = detect(tmp_path)
    with (
        pytest.raises(ThrottleError, match="remove disk_read_limit"),
        MemoryLimit(None, "none", none, Throttle("8:0", 1000)),
    ):
        pass


def test_a_partition_s_throttle_is_put_on_its_disk(tmp_path: Path) -> None:
    number = os.stat(tmp_path).st_dev
    name = f"{os.major(number)}:{os.minor(number)}"
    with pytest.raises(ThrottleError, match="no block device of its own"):
        block_device(tmp_path, tmp_path)
    partition = tmp_path / "sda" / "sda1"
    partition.mkdir(parents=True)
    (partition / "partition").write_text("1")
    (tmp_path / "sda" / "dev").write_text("8:0\n")
    (tmp_path / name).symlink_to(partition)
    assert block_device(tmp_path, tmp_path) == "8:0"
    assert Throttle("8:0", 5).v2_line == "8:0 rbps=5"


def test_v2_throttles_are_written_to_the_group(tmp_path: Path) -> None:
    support = limits.LimitSupport("cgroup-v2", (tmp_path,))
    with MemoryLimit(64 << 20, "v2", support, Throttle("8:0", 1000)) as limit:
        group = limit.group()
        assert (group / "io.max").read_text() == "8:0 rbps=1000"
        for file in group.iterdir():
            file.unlink()  # a real cgroup's files vanish with it


FAKE_SYSTEMD_RUN = """#!/bin/sh
# Substitutes systemd: writes the limit where the kernel would, then becomes the command.
for argument in "$@"; do
    case "$argument" in --property=MemoryMax=*) limit="${argument#--property=MemoryMax=}";; esac
    shift
    [ "$argument" = "--" ] && break
done
mkdir -p "ROOT$(sed -n s/^0:://p /proc/self/cgroup)"
echo "$limit" > "ROOT$(sed -n s/^0:://p /proc/self/cgroup)/memory.max"
exec "$@"
"""


def test_systemd_run_is_used_only_where_a_probe_reads_its_limit_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    tool = tmp_path / "bin" / "systemd-run"
    tool.parent.mkdir()
    tool.write_text(FAKE_SYSTEMD_RUN.replace("ROOT", str(tmp_path / "cgroup")))
    tool.chmod(0o755)
    if not any(line.startswith("0::") for line in Path("/proc/self/cgroup").read_text().splitlines()):
        pytest.skip("no cgroup version 2 hierarchy at all")
    support = detect(tmp_path / "cgroup")
    assert support.mechanism == "systemd-run"
    command = support.manager.command(["worker"], 123, Throttle("8:0", 456))
    assert command[0] == "systemd-run"
    assert "--property=MemoryMax=123" in command
    assert "--property=MemorySwapMax=0" in command
    assert "--property=IOReadBandwidthMax=/dev/block/8:0 456" in command
    assert command[-2:] == ["--", "worker"]
    tool.write_text("#!/bin/sh\nexit 0\n")
    assert "not in force" in detect(tmp_path / "cgroup").reason
    tool.write_text("#!/bin/sh\necho 'no bus' >&2\nexit 1\n")
    assert "systemd-run: no bus" in detect(tmp_path / "cgroup").reason


def test_a_scope_is_found_once_the_process_is_in_it(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "cgroup").write_text("0::/user.slice/app.slice/run-r12.scope\n")
    manager = scopes.Manager(user=True, root=Path("/sys/fs/cgroup"))
    assert manager.group_of(7, tmp_path) == Path("/sys/fs/cgroup/user.slice/app.slice/run-r12.scope")
    assert manager.group_of(8, tmp_path) is None


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
