"""What the kernel says of a process while it runs: resident memory, bytes read from disk, GPU memory."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Self

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def kernel_read_bytes(pid: int | str = "self") -> int | None:
    """Bytes the kernel fetched from storage for a process so far (``/proc/PID/io``), or None."""
    try:
        for line in Path(f"/proc/{pid}/io").read_text().splitlines():
            if line.startswith("read_bytes:"):
                return int(line.split()[1])
    except (OSError, ValueError):
        pass
    return None


def resident_bytes(pid: int | str = "self") -> int | None:
    """Resident set of a process (``/proc/PID/statm``), mapped file pages included, or None when it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES
    except (OSError, ValueError, IndexError):
        return None


class Telemetry:
    """Samples one process from a side thread of the parent, so that the measured process pays nothing.

    Args:
        pid: the process.
        period_s: time between samples.

    After the block, ``peak_rss_bytes`` and ``peak_device_bytes`` (NVML, None without a GPU) are final.
    """

    def __init__(self, pid: int, period_s: float = 0.05) -> None:
        self.peak_rss_bytes: int | None = None
        self.peak_device_bytes: int | None = None
        self._pid, self._period_s = pid, period_s
        self._stop = threading.Event()
        self._gpu = _Gpu()
        self._thread = threading.Thread(target=self._run, name="telemetry", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            self.peak_rss_bytes = _larger(self.peak_rss_bytes, resident_bytes(self._pid))
            self.peak_device_bytes = _larger(self.peak_device_bytes, self._gpu.used_bytes(self._pid))
            self._stop.wait(self._period_s)


class _Gpu:
    """NVML where there is one; silent otherwise."""

    def __init__(self) -> None:
        self._nvml: Any = None
        with contextlib.suppress(Exception):  # no library, no driver, no GPU: nothing to read
            import pynvml

            pynvml.nvmlInit()
            self._nvml = pynvml

    def used_bytes(self, pid: int) -> int | None:
        if self._nvml is None:
            return None
        with contextlib.suppress(Exception):
            used = 0
            for index in range(self._nvml.nvmlDeviceGetCount()):
                handle = self._nvml.nvmlDeviceGetHandleByIndex(index)
                processes = self._nvml.nvmlDeviceGetComputeRunningProcesses(handle)
                used += sum(p.usedGpuMemory or 0 for p in processes if p.pid == pid)
            return used
        return None


def _larger(a: int | None, b: int | None) -> int | None:
    return b if a is None else a if b is None else max(a, b)
