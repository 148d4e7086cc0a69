"""Engines: processes of a system's own, under the kernel's limit in place of the worker that drives them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.machine.proc import kernel_read_bytes

_ENTER = Path(__file__).with_name("enter.py")


class Engines:
    """Starts engines under the cell's limit, and counts what the kernel read for them.

    Args:
        prefix: words before a command that make it run under the limit (``MemoryLimit.command``).
        groups: cgroups that an engine enters before it becomes its command.
        ids: file to which the process id of each engine is added, a line each, for the runner's telemetry.
    """

    def __init__(self, prefix: Sequence[str] = (), groups: Sequence[str] = (), ids: Path | None = None) -> None:
        self._prefix, self._groups, self._ids = list(prefix), list(groups), ids
        self.started: list[subprocess.Popen[Any]] = []

    def start(self, argv: Sequence[str], **popen: Any) -> subprocess.Popen[Any]:
        """``baselines.contract.StartEngine``: on return the command runs, and the limit holds for it."""
        report, channel = os.pipe()
        enter = [sys.executable, "-I", "-S", str(_ENTER), str(os.getpid()), str(channel), *self._groups, "--"]
        inherited = (*popen.pop("pass_fds", ()), channel)
        with open(report, "rb") as answer:
            try:
                process = subprocess.Popen([*self._prefix, *enter, *argv], pass_fds=inherited, **popen)
            finally:
                os.close(channel)
            trouble = answer.read().decode()  # ends when the command runs
        if trouble:
            process.communicate()
            raise RuntimeError(f"the engine cannot be started: {trouble}")
        self.started.append(process)
        if self._ids is not None:
            with self._ids.open("a") as ids:
                ids.write(f"{process.pid}\n")
        return process

    def read_bytes(self) -> int | None:
        """Bytes the kernel fetched from storage for this process and its engines, ended ones too, or None.

        The kernel adds what a child has read to its parent's count once the parent has waited for it.
        """
        counts = [kernel_read_bytes()]
        counts += [kernel_read_bytes(engine.pid) for engine in self.started if engine.poll() is None]
        known = [count for count in counts if count is not None]
        return sum(known) if len(known) == len(counts) else None


def last_id(ids: Path) -> int | None:
    """The process id of the engine started last, or None before there is one."""
    try:
        return int(ids.read_text().rpartition("\n")[0].split()[-1])
    except (OSError, IndexError, ValueError):
        return None
