"""The kernel's memory limit is real, is reported, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from harness.machine import limits
from harness.machine.limits import LimitSupport, MemoryLimit, detect
from harness.machine.page_cache import drop_page_cache

SUPPORT = detect()
needs_limit = pytest.mark.skipif(SUPPORT.mechanism == "none", reason=f"no memory limit here: {SUPPORT.reason}")

# Waits for a line, so that the parent can place it first; then allocates and touches MIB.
CHILD = "import sys; sys.stdin.readline(); x = bytearray(int(sys.argv[1]) << 20); print(len(x))"


def _child(mib: int, limit: MemoryLimit) -> tuple[int, str]:
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(mib)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    limit.add(process.pid)
    output, _ = process.communicate("go\n", timeout=60)
    return process.returncode, output


@needs_limit
def test_a_process_beyond_the_limit_is_killed_by_the_kernel() -> None:
    with MemoryLimit(64 << 20, "beyond", SUPPORT) as limit:
        code, _ = _child(256, limit)
        assert code == -signal.SIGKILL
        assert limit.oom_kills() >= 1


@needs_limit
def test_a_process_below_the_limit_survives_and_its_peak_is_reported() -> None:
    with MemoryLimit(256 << 20, "beneath", SUPPORT) as limit:
        code, output = _child(100, limit)
        report = limit.report()
    assert (code, output) == (0, f"{100 << 20}\n")
    assert report.enforced
    assert report.mechanism == SUPPORT.mechanism
    assert report.limit_bytes == 256 << 20
    if report.peak_bytes is not None:
        assert 100 << 20 <= report.peak_bytes <= 256 << 20


@needs_limit
def test_page_cache_counts_against_the_limit(tmp_path: Path) -> None:
    file = tmp_path / "data"
    file.write_bytes(os.urandom(1 << 20) * 192)
    drop_page_cache([tmp_path])
    reader = "import sys; sys.stdin.readline(); print(sum(len(b) for b in iter(lambda: f.read(1 << 20), b'')))"
    with MemoryLimit(96 << 20, "cache", SUPPORT) as limit:
        process = subprocess.Popen(
            [sys.executable, "-c", f"f = open({str(file)!r}, 'rb'); {reader}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        limit.add(process.pid)
        output, _ = process.communicate("go\n", timeout=60)
        peak = limit.peak_bytes()
    assert int(output) == 192 << 20
    assert peak is None or peak <= 96 << 20


@needs_limit
def test_groups_are_removed_even_after_a_kill() -> None:
    with MemoryLimit(64 << 20, "killed", SUPPORT) as limit:
        _child(256, limit)
        groups = list(limit._groups)
        assert all(group.exists() for group in groups)
    assert not any(group.exists() for group in groups)


def test_where_nothing_works_the_report_says_so(tmp_path: Path) -> None:
    support = detect(tmp_path)
    assert support.mechanism == "none"
    with MemoryLimit(64 << 20, "none", support) as limit:
        limit.add(os.getpid())
        report = limit.report()
    assert not report.enforced
    assert report.mechanism == "none"
    assert report.reason is not None
    assert "memory controller" in report.reason
    assert "run as root" in report.reason


def test_v2_files_are_written_and_read(tmp_path: Path) -> None:
    support = LimitSupport("cgroup-v2", (tmp_path,))
    with MemoryLimit(64 << 20, "v2", support) as limit:
        (group,) = limit._groups
        assert (group / "memory.max").read_text() == str(64 << 20)
        assert (group / "memory.swap.max").read_text() == "0"
        (group / "memory.peak").write_text("12345\n")
        (group / "memory.events").write_text("low 0\noom 1\noom_kill 2\n")
        assert limit.peak_bytes() == 12345
        assert limit.oom_kills() == 2
        limit.add(17)
        assert (group / "cgroup.procs").read_text() == "17"
        for file in group.iterdir():
            file.unlink()  # a real cgroup's files vanish with it
    assert not group.exists()


def test_v2_is_found_where_the_memory_controller_is_delegated(tmp_path: Path) -> None:
    (tmp_path / "cgroup.subtree_control").write_text("cpu memory pids\n")
    assert limits._parents_v2(tmp_path) == (tmp_path,)
    (tmp_path / "cgroup.subtree_control").write_text("cpu pids\n")
    assert limits._parents_v2(tmp_path) == ()


def test_a_limit_no_process_can_start_in_is_refused() -> None:
    with pytest.raises(ValueError, match="below one MiB"):
        MemoryLimit(1000, "tiny")


def test_stale_groups_of_dead_runs_are_removed(tmp_path: Path) -> None:
    (tmp_path / "specmoe-bench-999999999-measure").mkdir()
    (tmp_path / f"specmoe-bench-{os.getpid()}-measure").mkdir()
    assert limits.clean_stale_groups(LimitSupport("cgroup-v1", (tmp_path,))) == 1
    assert [p.name for p in tmp_path.iterdir()] == [f"specmoe-bench-{os.getpid()}-measure"]
