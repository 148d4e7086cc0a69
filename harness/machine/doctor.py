"""What this machine can enforce and measure, with the mend for each no."""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from harness.machine import ceilings, environment, limits, proc
from harness.machine.energy import Rapl
from harness.machine.gpu import Gpu
from harness.machine.perf_events import MemoryCounters
from harness.machine.throttle import Throttle
from workloads.cache import cache_dir

STALE_DAYS = 30
READ_AHEAD_KIB = 1024
SPACE_BYTES = 6 * 10**9  # embedded-x32: the model, its store, and an offload folder


@dataclass(frozen=True)
class Check:
    """One ability: ``detail`` says what was found, ``mend`` what to do where it is missing."""

    name: str
    ok: bool
    detail: str
    mend: str = ""

    def __str__(self) -> str:
        mend = f"\n{'':26}mend: {self.mend}" if not self.ok and self.mend else ""
        return f"{self.name:20} {'yes' if self.ok else 'no':4} {self.detail}{mend}"


def examine() -> list[Check]:
    """All checks, in the order they matter."""
    return [*_enforce(), *_files(), *_measure(), *_quiet(), *_packages()]


def _enforce() -> Iterator[Check]:
    support = limits.detect()
    limited = support.mechanism != "none"
    detail = support.mechanism if limited else (support.why_not or "").removesuffix(f": {limits.MEND}")
    yield Check("memory limit", limited, detail, f"{limits.MEND}; without it results say `unenforced`")
    try:
        folder = cache_dir()
        folder.mkdir(parents=True, exist_ok=True)
        with limits.MemoryLimit(None, "doctor", support, Throttle.of(folder, 10**9)):
            yield Check("disk throttle", True, f"{support.mechanism}, for {folder}")
    except OSError as error:
        yield Check("disk throttle", False, str(error), "needed for disk_read_limit only: see the message")


def _files() -> Iterator[Check]:
    folder = cache_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        mend = "free some space, or set SPECMOE_CACHE to a folder on another disk"
        yield Check("disk space", free > SPACE_BYTES, f"{free / 1e9:.1f} GB free in {folder}", mend)
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            try:
                os.close(os.open(file.name, os.O_RDONLY | os.O_DIRECT))
                yield Check("O_DIRECT", True, f"in {folder}")
            except OSError as error:
                mend = "set SPECMOE_CACHE to a folder on a local disk; until then reads go through the page cache"
                yield Check("O_DIRECT", False, f"{folder}: {error.strerror}", mend)
        yield _read_ahead(environment.read_ahead_kib(folder))
    except OSError as error:
        yield Check("cache folder", False, f"{folder}: {error.strerror}", "set SPECMOE_CACHE to a writable folder")
    try:
        known = ceilings.latest()
    except ValueError as error:
        yield Check("calibration", False, str(error), "see the message")
        return
    age = (datetime.now(UTC) - datetime.fromisoformat(known.date)).days if known else None
    detail = "none of this machine" if age is None or known is None else f"{known.date}, {age} days ago"
    yield Check("calibration", age is not None and age <= STALE_DAYS, detail, "run `specmoe-bench calibrate`")


def _read_ahead(kib: int | None) -> Check:
    """Systems over mapped files fetch so much at every fault."""
    mend = (
        "it slows systems that map files (mmap, accelerate-disk): blockdev --setra 256 on the disk makes it 128 KiB; "
        "the record carries it"
    )
    return Check("read-ahead", kib is None or kib <= READ_AHEAD_KIB, "unknown" if kib is None else f"{kib} KiB", mend)


def _measure() -> Iterator[Check]:
    old = "needs Linux with /proc mounted and task I/O accounting"
    yield Check("bytes from disk", proc.kernel_read_bytes() is not None, "/proc/PID/io", old)
    yield Check("PSS", proc.proportional_bytes() is not None, "/proc/PID/smaps_rollup", "needs Linux 4.14 or newer")
    gpus = Gpu().count
    mend = "needs an NVIDIA GPU, its driver and nvidia-ml-py; cells on the CPU do without"
    yield Check("GPU counters", gpus > 0, f"NVML sees {gpus} GPUs", mend)
    rapl = Rapl()
    yield Check("CPU energy", rapl.available, rapl.why_not or "RAPL", "run on bare metal with readable energy_uj")
    with MemoryCounters() as memory:
        found = memory.why_not or "uncore_imc"
        mend = "run on bare metal as root (or perf_event_paranoid 0); until then traffic is modelled and labelled so"
        yield Check("memory traffic", memory.available, found, mend)


def _quiet() -> Iterator[Check]:
    governor = environment.capture()["governor"]
    found = governor or "not visible here"
    yield Check("CPU governor", governor in (None, "performance"), found, "cpupower frequency-set -g performance")
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    mend = "end what else is running; ratios within a round bear it, intervals widen"
    yield Check("idle machine", load < 0.3 * cores, f"load {load:.1f} on {cores} cores", mend)
    swap = proc.swap_bytes()
    yield Check("no swap", not swap, f"{(swap or 0) / 1e9:.1f} GB of swap", "swapoff -a, where limits cannot forbid it")


def _packages() -> Iterator[Check]:
    for package, what in (("ray", "--executor ray"), ("pyarrow", "export to parquet")):
        there = importlib.util.find_spec(package) is not None
        extra = "ray" if package == "ray" else "export"
        yield Check(package, there, what, f"pip install 'specmoe-bench[{extra}]'")
