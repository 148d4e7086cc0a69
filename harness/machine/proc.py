"""Single facts about a process or a cgroup from the kernel's files; light to import, for workers use it too."""

from __future__ import annotations

import os
import re
from pathlib import Path

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def kernel_read_bytes(pid: int | str = "self") -> int | None:
    """Bytes the kernel fetched from storage for a process so far (``/proc/PID/io``), or None."""
    return _number(Path(f"/proc/{pid}/io"), r"^read_bytes:\s*(\d+)$")


def resident_bytes(pid: int | str = "self") -> int | None:
    """Resident set of a process (``/proc/PID/statm``), mapped file pages included, or None when it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES
    except (OSError, ValueError, IndexError):
        return None


def proportional_bytes(pid: int | str = "self") -> int | None:
    """Resident set with shared pages divided among those who share them (PSS), or None."""
    kibibytes = _number(Path(f"/proc/{pid}/smaps_rollup"), r"^Pss:\s*(\d+) kB$")
    return None if kibibytes is None else kibibytes * 1024


def page_cache_bytes(group: Path) -> int | None:
    """Page cache charged to a cgroup (version 1: ``cache``, version 2: ``file``), or None."""
    return _number(group / "memory.stat", r"^(?:cache|file) (\d+)$")


def group_peak_bytes(group: Path) -> int | None:
    """Most memory a cgroup ever held (version 1 or 2), or None."""
    first = _number(group / "memory.peak", r"^(\d+)$")
    return first if first is not None else _number(group / "memory.max_usage_in_bytes", r"^(\d+)$")


def swap_bytes() -> int | None:
    """Swap space of the machine, or None."""
    kibibytes = _number(Path("/proc/meminfo"), r"^SwapTotal:\s*(\d+) kB$")
    return None if kibibytes is None else kibibytes * 1024


def _number(file: Path, pattern: str) -> int | None:
    try:
        found = re.search(pattern, file.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) if found else None
