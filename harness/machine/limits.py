"""A kernel-enforced memory limit for one process: page cache included, swap excluded.

Uses cgroup v1, cgroup v2 or systemd-run (``harness.machine.scopes``), whichever this user may use.  A group is
made for each cell and removed afterwards.  Without a working mechanism a ``MemoryLimit`` does nothing, and its report
has ``enforced=False`` and the reason.  A disk throttle, in contrast, is in force or an error.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import psutil

from harness.machine import scopes
from harness.machine.throttle import Throttle, ThrottleError
from reports.results.record import Covers, Limit

ROOT = Path("/sys/fs/cgroup")
PREFIX = "specmoe-bench-"
Mechanism = Literal["cgroup-v1", "cgroup-v2", "systemd-run", "none"]

FIX = "run as root, or delegate a cgroup with the memory controller (systemd-run --user --scope -p Delegate=yes)"


@dataclass(frozen=True)
class LimitSupport:
    """What this machine can enforce.

    ``parents`` are the folders of new groups, the memory controller's first; ``reason`` says why the mechanism is
    ``none``; ``blkio`` is the folder for disk throttles of cgroup v1; ``manager`` starts systemd scopes.
    """

    mechanism: Mechanism
    parents: tuple[Path, ...] = ()
    reason: str | None = None
    blkio: Path | None = None
    manager: scopes.Manager | None = None


def detect(root: Path = ROOT) -> LimitSupport:
    """Find a working mechanism by making a group with a limit and removing it."""
    reasons = []
    candidates: tuple[tuple[Mechanism, Callable[[Path], tuple[Path, ...]]], ...] = (
        ("cgroup-v1", _parents_v1),
        ("cgroup-v2", _parents_v2),
    )
    for mechanism, find in candidates:
        try:
            parents = find(root)
            if not parents:
                reasons.append(f"{mechanism}: no memory controller under {root}")
                continue
            blkio = root / "blkio" if (root / "blkio" / "blkio.throttle.read_bps_device").exists() else None
            support = LimitSupport(mechanism, parents, blkio=blkio if mechanism == "cgroup-v1" else None)
            with MemoryLimit(1 << 30, "probe", support):
                return support
        except OSError as error:
            reasons.append(f"{mechanism}: {error.strerror or error}")
    manager, reason = scopes.detect(root)
    if manager is not None:
        return LimitSupport("systemd-run", manager=manager)
    reasons.append(f"systemd-run: {reason}")
    return LimitSupport("none", reason=f"{'; '.join(reasons)}: {FIX}")


def _parents_v1(root: Path) -> tuple[Path, ...]:
    memory = root / "memory"
    return (memory,) if (memory / "memory.usage_in_bytes").exists() else ()


def _parents_v2(root: Path) -> tuple[Path, ...]:
    own = Path("/proc/self/cgroup").read_text().splitlines()
    inside = next((line.removeprefix("0::").strip("/") for line in own if line.startswith("0::")), "")
    for mount in (root, root / "unified"):
        # in version 2 only leaf groups hold processes, so the new group is a sibling of our own
        for parent in dict.fromkeys(((mount / inside).parent, mount / inside, mount)):
            control = parent / "cgroup.subtree_control"
            if control.exists() and "memory" in control.read_text().split():
                return (parent,)
    return ()


class MemoryLimit:
    """A group with a limit for one process and its children: a worker, or the engine that a worker drives.

    Args:
        limit_bytes: of anonymous memory and page cache together; None for no limit.
        name: part of the group's name.
        support: what ``detect`` found; detected if not given.
        throttle: limit of reads from a disk; None for no limit.
        covers: ``worker``, or ``engine`` for a worker outside of the limit that starts its engine with ``entry``
            (``harness.run.engines``).

    Use as a context manager; start the process with ``command`` and ``add`` it before it allocates.

    Raises:
        ThrottleError: on entering, if a throttle is requested that cannot be enforced.
    """

    def __init__(
        self,
        limit_bytes: int | None,
        name: str,
        support: LimitSupport | None = None,
        throttle: Throttle | None = None,
        covers: Covers = "worker",
    ) -> None:
        if limit_bytes is not None and limit_bytes < 1 << 20:
            raise ValueError(f"memory limit of {limit_bytes} bytes is below one MiB: no process can start in it")
        self._limit_bytes = limit_bytes
        self._throttle = throttle
        self.covers: Covers = covers
        asked = limit_bytes is not None or throttle is not None
        self._support = support or (detect() if asked else LimitSupport("none", reason="no limit requested"))
        own = f"{PREFIX}{os.getpid()}-{name}"
        self._groups = [parent / own for parent in self._support.parents]
        self._scope: Path | None = None  # the group systemd made, known once the process runs
        if throttle is not None and self._support.blkio is not None:
            self._groups.append(self._support.blkio / own)

    def __enter__(self) -> Self:
        try:
            for group in self._groups:
                group.mkdir(exist_ok=True)
            if self._groups and self._limit_bytes is not None:
                self._set_limit(self._groups[0], self._limit_bytes)
            if self._throttle is not None:
                self._set_throttle(self._throttle)
        except OSError:
            self._remove()
            raise
        return self

    def _set_limit(self, group: Path, limit_bytes: int) -> None:
        if self._support.mechanism == "cgroup-v1":
            (group / "memory.limit_in_bytes").write_text(str(limit_bytes))
            with contextlib.suppress(OSError):  # kernels without swap accounting have no such file
                (group / "memory.memsw.limit_in_bytes").write_text(str(limit_bytes))
            with contextlib.suppress(OSError):
                (group / "memory.swappiness").write_text("0")
        else:
            (group / "memory.max").write_text(str(limit_bytes))
            with contextlib.suppress(OSError):
                (group / "memory.swap.max").write_text("0")

    def _set_throttle(self, throttle: Throttle) -> None:
        try:
            if self._support.mechanism == "cgroup-v1" and self._support.blkio is not None:
                (self._groups[-1] / "blkio.throttle.read_bps_device").write_text(throttle.v1_line)
            elif self._support.mechanism == "cgroup-v2":
                (self._groups[0] / "io.max").write_text(throttle.v2_line)
            elif self._support.mechanism != "systemd-run":
                raise ThrottleError(self._support.reason or "this machine has no block controller")
        except OSError as error:
            raise ThrottleError(
                f"disk_read_limit cannot be enforced ({error.strerror or error}): {FIX}, or remove disk_read_limit"
            ) from error

    def command(self, argv: Sequence[str]) -> list[str]:
        """The command that starts the process inside the limit."""
        if self._support.manager is None:
            return list(argv)
        return self._support.manager.command(argv, self._limit_bytes, self._throttle)

    def add(self, pid: int) -> None:
        """Move a process into the group."""
        for group in self._groups:
            (group / "cgroup.procs").write_text(str(pid))
        self.find(pid)

    def find(self, pid: int) -> None:
        """Find the group that systemd made for a process started with ``command``."""
        if self._support.manager is not None:
            self._scope = self._support.manager.group_of(pid)

    def entry(self) -> tuple[list[str], list[str]]:
        """How a process enters the limit by itself: (prefix of its command, groups to enter)."""
        return self.command([]), [str(group) for group in self._groups]

    def group(self) -> Path | None:
        """The memory controller's folder for the process, or None."""
        return self._groups[0] if self._groups else self._scope

    def kill_members(self) -> list[int]:
        """Kill the processes still in the group; returns their ids."""
        group, killed = self.group(), []
        with contextlib.suppress(OSError):
            for pid in map(int, (group / "cgroup.procs").read_text().split() if group else ()):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)
        return killed

    def peak_bytes(self) -> int | None:
        """Most memory the group ever held, page cache included; None if the kernel does not say."""
        group = self.group()
        if group is None:
            return None
        name = "memory.max_usage_in_bytes" if self._support.mechanism == "cgroup-v1" else "memory.peak"
        return _read_int(group / name)

    def oom_kills(self) -> int:
        """Number of processes of the group that the kernel killed at the limit."""
        group = self.group()
        if group is None:
            return 0
        name = "memory.oom_control" if self._support.mechanism == "cgroup-v1" else "memory.events"
        with contextlib.suppress(OSError):
            found = re.search(r"^oom_kill (\d+)$", (group / name).read_text(), re.MULTILINE)
            return int(found[1]) if found else 0
        return 0

    def report(self) -> Limit:
        """What was in force, for the record."""
        enforced = self._support.mechanism != "none" and self._limit_bytes is not None
        return Limit(
            enforced=enforced,
            mechanism=self._support.mechanism if enforced else "none",
            limit_bytes=self._limit_bytes,
            peak_bytes=self.peak_bytes(),
            reason=None if enforced else self._support.reason,
            disk_read_limit_bytes_s=self._throttle.read_bytes_s if self._throttle else None,
            covers=self.covers,
        )

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._remove()

    def _remove(self) -> None:
        """Remove the groups, with retries: a killed process may take a moment to leave."""
        for group in self._groups:
            for _ in range(50):
                try:
                    group.rmdir()
                    break
                except FileNotFoundError:
                    break
                except OSError:
                    time.sleep(0.02)


def clean_stale_groups(support: LimitSupport) -> int:
    """Remove the groups of runs that were killed; returns how many."""
    removed = 0
    for parent in (*support.parents, *filter(None, [support.blkio])):
        for group in parent.glob(f"{PREFIX}*"):
            pid = group.name.removeprefix(PREFIX).split("-")[0]
            if pid.isdigit() and not psutil.pid_exists(int(pid)):
                with contextlib.suppress(OSError):
                    group.rmdir()
                    removed += 1
    return removed


def _read_int(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None
