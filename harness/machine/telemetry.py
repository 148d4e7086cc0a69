"""Memory, I/O, energy and GPU figures of a running process, sampled from outside."""

from __future__ import annotations

import resource
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from harness.machine.energy import Rapl
from harness.machine.gpu import Gpu
from harness.machine.perf_events import MemoryCounters
from harness.machine.proc import group_peak_bytes, page_cache_bytes, proportional_bytes, resident_bytes
from reports.results.record import Usage

SHARE = 1 / 200  # of the time: the most that sampling may cost
_SLOW_PERIOD_S = 1.0  # for costly reads: PSS walks the page tables, a PCIe rate takes 20 ms


class Telemetry:
    """Samples a child process from a thread of the parent, at no cost to the measured process.

    Args:
        pid: the process.
        group: its memory cgroup, if it has one.
        period_s: time between samples; longer if a sample costs more than ``SHARE`` of it.
        engine: returns the engine that the process has started, as (pid, group), or None before it has.  If given,
            the engine is sampled instead of the process; totals cover both.

    Wait for the process inside the block; after the block ``usage`` is final.
    """

    def __init__(
        self,
        pid: int,
        group: Path | None = None,
        period_s: float = 0.1,
        engine: Callable[[], tuple[int, Path | None] | None] | None = None,
    ) -> None:
        self._pid, self._group, self._period_s = pid, group, period_s
        self._engine = engine
        self._peaks: dict[str, Any] = {}
        self._samples = 0
        self._sampler_cpu_s = 0.0
        self._wall_s = 0.0
        self._stop = threading.Event()
        self._gpu = Gpu()
        self._rapl = Rapl()
        self._memory = MemoryCounters()
        self._thread = threading.Thread(target=self._run, name="telemetry", daemon=True)

    def __enter__(self) -> Self:
        self._started = time.perf_counter()
        self._children = resource.getrusage(resource.RUSAGE_CHILDREN)
        self._energy_uj = self._rapl.read_uj()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
        self._wall_s = time.perf_counter() - self._started
        self._energy_j = self._rapl.joules_since(self._energy_uj)
        self._memory_bytes = self._memory.total_bytes()
        self._memory.close()
        self._ended = resource.getrusage(resource.RUSAGE_CHILDREN)

    def usage(self) -> Usage:
        """Peaks over the samples and totals of the block; totals cover the children waited for in it."""
        before, after = self._children, self._ended
        cpu_s = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
        memory = self._memory_bytes
        return Usage(
            samples=self._samples,
            period_s=self._wall_s / max(1, self._samples),
            sampler_cpu_share=self._sampler_cpu_s / self._wall_s,
            disk_read_bytes=(after.ru_inblock - before.ru_inblock) * 512,
            disk_write_bytes=(after.ru_oublock - before.ru_oublock) * 512,
            cpu_s=cpu_s,
            cpu_cores=cpu_s / self._wall_s,
            cpu_energy_j=self._energy_j,
            memory_gb_s=None if memory is None else memory / self._wall_s / 1e9,
            **self._peaks,
            **self._gpu.summary(),
        )

    def _run(self) -> None:
        slow_due = 0.0
        while not self._stop.is_set():
            started = time.perf_counter()
            if self._engine is not None and not self._turn_to(self._engine()):
                self._stop.wait(self._period_s)
                continue
            self._sample()
            slow = started >= slow_due
            if slow:
                self._sample_slow()
            cost = time.perf_counter() - started
            if slow:
                slow_due = started + max(_SLOW_PERIOD_S, 2 * cost / SHARE)
            self._sampler_cpu_s = time.thread_time()
            self._stop.wait(self._period_s if slow else max(self._period_s, cost / SHARE))

    def _turn_to(self, engine: tuple[int, Path | None] | None) -> bool:
        """Sample the engine from now on; False if there is none yet."""
        if engine is not None:
            self._pid, self._group = engine
        return engine is not None

    def _sample(self) -> None:
        self._samples += 1
        self._note("peak_rss_bytes", resident_bytes(self._pid))
        if self._group is not None:
            self._note("peak_page_cache_bytes", page_cache_bytes(self._group))
            self._note("peak_cgroup_bytes", group_peak_bytes(self._group))
        if self._gpu.count:
            self._gpu.sample_memory(self._pid)

    def _sample_slow(self) -> None:
        self._note("peak_pss_bytes", proportional_bytes(self._pid))
        self._gpu.sample_rates()

    def _note(self, name: str, value: int | None) -> None:
        if value is not None:
            self._peaks[name] = max(self._peaks.get(name, 0), value)
