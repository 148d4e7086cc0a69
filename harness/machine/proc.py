"""What the kernel says of a process (through psutil) and of a cgroup (from its files); light to import for workers."""

from __future__ import annotations

import re
from pathlib import Path

import psutil


def kernel_read_bytes(pid: int | None = None) -> int | None:
    """Bytes that the kernel has fetched from storage for a process (this one by default); None if it is gone."""
    try:
        return int(psutil.Process(pid).io_counters().read_bytes)
    except (psutil.Error, OSError):
        return None


def resident_bytes(pid: int) -> int | None:
    """Resident set of a process, mapped file pages included; None if it is gone."""
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except (psutil.Error, OSError):
        return None


def proportional_bytes(pid: int | None = None) -> int | None:
    """Resident set with each shared page divided among the processes that map it (PSS); None if it is gone."""
    try:
        return int(psutil.Process(pid).memory_full_info().pss) or None  # 0 for a process that has ended
    except (psutil.Error, OSError, AttributeError):  # no pss: not Linux
        return None


def page_cache_bytes(group: Path) -> int | None:
    """Page cache charged to a cgroup (version 1: ``cache``, version 2: ``file``); None if the kernel does not say."""
    return _number(group / "memory.stat", r"^(?:cache|file) (\d+)$")


def group_peak_bytes(group: Path) -> int | None:
    """Most memory a cgroup ever held (version 1 or 2); None if the kernel does not say."""
    peak = _number(group / "memory.peak", r"^(\d+)$")
    return peak if peak is not None else _number(group / "memory.max_usage_in_bytes", r"^(\d+)$")


def _number(file: Path, pattern: str) -> int | None:
    try:
        found = re.search(pattern, file.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) if found else None
