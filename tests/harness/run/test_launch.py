"""The runner waits for its worker alone, reads what the worker wrote before it died, and ends what it left behind."""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path

import psutil
import pytest

from harness.machine.limits import MemoryLimit, detect
from harness.run import launch
from harness.run.job import Job, Paths
from reports.results.record import Cell

WORKER = """
import subprocess, sys
sys.stdin.readline()
child = subprocess.Popen(["sleep", "60"])
print("child", child.pid, file=sys.stderr)
sys.exit(3)
"""


def test_a_child_that_outlives_its_worker_does_not_hold_up_the_runner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "_COMMAND", (sys.executable, "-c", WORKER))
    names = ("model", "store", "scratch", "reference", "result")
    job = Job(
        action="measure",
        cell=Cell(system="s", model="m", batch_size=1, new_tokens=1),
        paths=Paths(**{name: tmp_path / name for name in names}),
    )
    support = detect()
    started = time.monotonic()
    outcome = launch.run(job, MemoryLimit(256 << 20, "left-child", support), timeout_s=50)
    assert time.monotonic() - started < 40, "the child sleeps for 60 s"
    assert outcome.answer.status == "failed"
    assert "code 3: child " in (outcome.answer.error or "")
    if outcome.limit.enforced:
        _, left = psutil.wait_procs(_processes(int((outcome.answer.error or "").split()[-1])), timeout=10)
        assert left == []


def _processes(pid: int) -> list[psutil.Process]:
    """The process of that id, if it runs."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        if process.status() != psutil.STATUS_ZOMBIE:
            return [process]
    return []
