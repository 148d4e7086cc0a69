"""systemd-run is used only if it enforces the limit."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from harness.machine import scopes
from harness.machine.limits import detect
from harness.machine.throttle import Throttle

FAKE_SYSTEMD_RUN = """#!/bin/sh
# Substitutes systemd: writes the limit where the kernel would, then becomes the command.
for argument in "$@"; do
    case "$argument" in --property=MemoryMax=*) limit="${argument#--property=MemoryMax=}";; esac
    shift
    [ "$argument" = "--" ] && break
done
mkdir -p "ROOT$(sed -n s/^0:://p /proc/self/cgroup)"
echo "$limit" > "ROOT$(sed -n s/^0:://p /proc/self/cgroup)/memory.max"
exec "$@"
"""


def test_systemd_run_is_used_only_where_a_probe_reads_its_limit_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    tool = tmp_path / "bin" / "systemd-run"
    tool.parent.mkdir()
    tool.write_text(FAKE_SYSTEMD_RUN.replace("ROOT", str(tmp_path / "cgroup")))
    tool.chmod(0o755)
    if not any(line.startswith("0::") for line in Path("/proc/self/cgroup").read_text().splitlines()):
        pytest.skip("no cgroup version 2 hierarchy at all")
    support = detect(tmp_path / "cgroup")
    assert support.mechanism == "systemd-run"
    command = support.manager.command(["worker"], 123, Throttle("8:0", 456))
    assert command[0] == "systemd-run"
    assert "--property=MemoryMax=123" in command
    assert "--property=MemorySwapMax=0" in command
    assert "--property=IOReadBandwidthMax=/dev/block/8:0 456" in command
    assert command[-2:] == ["--", "worker"]
    tool.write_text("#!/bin/sh\nexit 0\n")
    assert "not in force" in detect(tmp_path / "cgroup").reason
    tool.write_text("#!/bin/sh\necho 'no bus' >&2\nexit 1\n")
    assert "systemd-run: no bus" in detect(tmp_path / "cgroup").reason


def test_a_scope_is_found_once_the_process_is_in_it(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "cgroup").write_text("0::/user.slice/app.slice/run-r12.scope\n")
    manager = scopes.Manager(user=True, root=Path("/sys/fs/cgroup"))
    assert manager.group_of(7, tmp_path) == Path("/sys/fs/cgroup/user.slice/app.slice/run-r12.scope")
    assert manager.group_of(8, tmp_path) is None
