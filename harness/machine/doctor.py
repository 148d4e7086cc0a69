"""Checks of what this machine can enforce and measure; each says how to fix what is missing."""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import psutil

from harness.machine import ceilings, environment, gpu_checks, limits, proc
from harness.machine.check import Check
from harness.machine.energy import Rapl
from harness.machine.gpu import Gpu
from harness.machine.gpu_checks import Facts
from harness.machine.perf_events import MemoryCounters
from harness.machine.storage import Storage
from harness.machine.throttle import Throttle
from specmoe.files import cache_dir

STALE_DAYS = 30
READ_AHEAD_KIB = 1024
SPACE_BYTES = 6 * 10**9  # embedded-x32: the model, its store, and an offload folder


def examine() -> list[Check]:
    """All checks, the most important first."""
    return [*_enforcement(), *_storage(), *_counters(), *_noise(), *_packages(), *gpu_checks.examine(Facts.here())]


def _enforcement() -> Iterator[Check]:
    support = limits.detect()
    limited = support.mechanism != "none"
    detail = support.mechanism if limited else (support.reason or "").removesuffix(f": {limits.FIX}")
    yield Check("memory limit", limited, detail, f"{limits.FIX}; without a limit, results say `unenforced`")
    try:
        folder = cache_dir()
        folder.mkdir(parents=True, exist_ok=True)
        with limits.MemoryLimit(None, "doctor", support, Throttle.of(folder, 10**9)):
            yield Check("disk throttle", True, f"{support.mechanism}, for {folder}")
    except OSError as error:
        yield Check("disk throttle", False, str(error), "only disk_read_limit needs it: see the message")


def _storage() -> Iterator[Check]:
    folder = cache_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        fix = "free some space, or set SPECMOE_CACHE to a folder on another disk"
        yield Check("disk space", free > SPACE_BYTES, f"{free / 1e9:.1f} GB free in {folder}", fix)
        yield _medium(folder)
        yield _direct_io(folder)
        yield _read_ahead(environment.read_ahead_kib(folder))
    except OSError as error:
        yield Check("cache folder", False, f"{folder}: {error.strerror}", "set SPECMOE_CACHE to a writable folder")
    yield _calibration()


def _medium(folder: Path) -> Check:
    storage = Storage.of(folder)
    fix = "set SPECMOE_CACHE to a folder on a disk, or results of systems that read a disk describe memory"
    return Check("disk", not storage.in_memory, f"{folder} is on {storage}", fix)


def _direct_io(folder: Path) -> Check:
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        try:
            os.close(os.open(file.name, os.O_RDONLY | os.O_DIRECT))
        except OSError as error:
            fix = "set SPECMOE_CACHE to a folder on a local disk; until then reads go through the page cache"
            return Check("O_DIRECT", False, f"{folder}: {error.strerror}", fix)
    return Check("O_DIRECT", True, f"in {folder}")


def _read_ahead(kib: int | None) -> Check:
    """A fault in a mapped file reads this much, which slows systems that map their weights."""
    fix = (
        "large values slow systems that map files (mmap, accelerate-disk): `blockdev --setra 256` on the disk sets "
        "128 KiB; results record the value"
    )
    return Check("read-ahead", kib is None or kib <= READ_AHEAD_KIB, "unknown" if kib is None else f"{kib} KiB", fix)


def _calibration() -> Check:
    try:
        latest = ceilings.latest()
    except ValueError as error:
        return Check("calibration", False, str(error), "see the message")
    fix = "run `specmoe-bench calibrate`"
    if latest is None:
        return Check("calibration", False, "none for this machine", fix)
    age_days = (datetime.now(UTC) - datetime.fromisoformat(latest.date)).days
    return Check("calibration", age_days <= STALE_DAYS, f"{latest.date}, {age_days} days ago", fix)


def _counters() -> Iterator[Check]:
    fix = "needs Linux with /proc mounted and task I/O accounting"
    yield Check("bytes from disk", proc.kernel_read_bytes() is not None, "/proc/PID/io", fix)
    yield Check("PSS", proc.proportional_bytes() is not None, "/proc/PID/smaps_rollup", "needs Linux 4.14 or newer")
    gpus = Gpu().count
    fix = "needs an NVIDIA GPU, its driver and nvidia-ml-py; cells on the CPU run without"
    yield Check("GPU counters", gpus > 0, f"NVML sees {gpus} GPUs", fix)
    rapl = Rapl()
    yield Check("CPU energy", rapl.available, rapl.reason or "RAPL", "run on bare metal with readable energy_uj")
    with MemoryCounters() as memory:
        fix = "run on bare metal as root (or with perf_event_paranoid 0); until then memory traffic is modelled"
        yield Check("memory traffic", memory.available, memory.reason or "uncore_imc", fix)


def _noise() -> Iterator[Check]:
    governor = environment.capture()["governor"]
    found = governor or "no frequency scaling visible"
    yield Check("CPU governor", governor in (None, "performance"), found, "cpupower frequency-set -g performance")
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    fix = "stop other programs; ratios within a round stay valid, but confidence intervals widen"
    yield Check("idle machine", load < 0.3 * cores, f"load {load:.1f} on {cores} cores", fix)
    swap = psutil.swap_memory().total
    yield Check(
        "no swap", not swap, f"{swap / 1e9:.1f} GB of swap", "swapoff -a, if the memory limit cannot forbid swap"
    )


def _packages() -> Iterator[Check]:
    for package, extra, purpose in (("ray", "ray", "--executor ray"), ("pyarrow", "export", "export to parquet")):
        installed = importlib.util.find_spec(package) is not None
        yield Check(package, installed, purpose, f"pip install 'specmoe-bench[{extra}]'")
