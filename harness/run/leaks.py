"""Leaks of a system: threads, child processes, open or mapped files after ``close``, and processes after exit."""

from __future__ import annotations

import contextlib
import gc
import os
import threading
from collections.abc import Iterable
from pathlib import Path

import psutil

MARK = "SPECMOE_BENCH_MARK"


def thread_names() -> set[str]:
    """Names of this process's Python threads; tqdm's monitor, which any progress bar starts, is left out."""
    return {thread.name for thread in threading.enumerate() if type(thread).__name__ != "TMonitor"}


def left_behind(folders: Iterable[Path], threads_before: set[str]) -> list[str]:
    """One line for each thread, child and open or mapped file below ``folders`` that this process still has."""
    gc.collect()  # models are full of cycles: what nothing refers to any more is no leak
    found = [f"thread {name}" for name in sorted(thread_names() - threads_before)]
    found += [f"child process {pid}" for pid in _children()]
    roots = [str(folder.resolve()) + os.sep for folder in folders]
    for kind, paths in (("open", _open_files()), ("mapped", _mapped_files())):
        found += [f"{kind} file {path}" for path in sorted(paths) if any(path.startswith(root) for root in roots)]
    return found


def marked_processes(mark: str) -> list[int]:
    """Processes that inherited ``MARK=mark`` in their environment, this one left out."""
    marked = [p.pid for p in psutil.process_iter(["environ"]) if (p.info["environ"] or {}).get(MARK) == mark]
    return [pid for pid in marked if pid != os.getpid()]


def listing(folders: Iterable[Path]) -> dict[str, int]:
    """Every file below ``folders`` with its size in bytes."""
    return {str(f): f.stat().st_size for folder in folders for f in sorted(folder.rglob("*")) if f.is_file()}


def _children() -> list[int]:
    """Children of this process that have not ended."""
    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.status() != psutil.STATUS_ZOMBIE:
                found.append(child.pid)
    return found


def _open_files() -> set[str]:
    found = set()
    for link in Path("/proc/self/fd").glob("*"):
        with contextlib.suppress(OSError):
            found.add(os.readlink(link))
    return found


def _mapped_files() -> set[str]:
    with contextlib.suppress(OSError):
        lines = Path("/proc/self/maps").read_text().splitlines()
        return {parts[5] for parts in (line.split(maxsplit=5) for line in lines) if len(parts) == 6}
    return set()
