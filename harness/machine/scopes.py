"""Limited groups through systemd-run, for users who may not write to cgroups themselves.

``systemd-run --scope`` requests a group with limits from systemd (the user's, or the system's for root), enters it and
becomes the command by exec, so the process keeps its id and its pipes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.machine.throttle import Throttle

_PROBE_BYTES = 64 << 20
_ENTER_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Manager:
    """A systemd that grants scopes with limits; ``root`` is where cgroups are mounted."""

    user: bool
    root: Path

    def command(self, argv: Sequence[str], limit_bytes: int | None, throttle: Throttle | None = None) -> list[str]:
        """``argv`` started inside a scope with these limits."""
        start = ["systemd-run", *(["--user"] if self.user else []), "--scope", "--quiet", "--collect"]
        properties = []
        if limit_bytes is not None:
            properties += [f"MemoryMax={limit_bytes}", "MemorySwapMax=0", "MemoryAccounting=yes"]
        if throttle is not None:
            properties += [throttle.systemd_property]
        return [*start, *(f"--property={p}" for p in properties), "--", *argv]

    def group_of(self, pid: int, proc: Path = Path("/proc")) -> Path | None:
        """The folder of the scope that the process entered; None if it ended before or entered none in time."""
        deadline = time.monotonic() + _ENTER_TIMEOUT_S
        while time.monotonic() < deadline:
            try:
                lines = (proc / str(pid) / "cgroup").read_text().splitlines()
            except OSError:
                return None
            inside = next((line.removeprefix("0::") for line in lines if line.startswith("0::")), "")
            if inside.endswith(".scope") and "/run-" in inside:
                return self.root / inside.strip("/")
            time.sleep(0.005)
        return None


def detect(root: Path) -> tuple[Manager | None, str | None]:
    """(manager, None) if a probe can read its own limit back, else (None, reason)."""
    if shutil.which("systemd-run") is None:
        return None, "not installed"
    manager = Manager(user=os.geteuid() != 0, root=root)
    script = f'cat "{root}$(sed -n s/^0:://p /proc/self/cgroup)/memory.max"'
    try:
        done = subprocess.run(
            manager.command(["sh", "-c", script], _PROBE_BYTES),
            capture_output=True,
            text=True,
            timeout=10,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, f"does not answer ({type(error).__name__})"
    if done.returncode:
        return None, done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"ended with {done.returncode}"
    if done.stdout.strip() != str(_PROBE_BYTES):
        return None, f"the limit is not in force (memory.max reads {done.stdout.strip() or 'nothing'})"
    return manager, None
