"""A disk throttle is enforced by the kernel or is an error."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.machine import limits
from harness.machine.limits import MemoryLimit, detect
from harness.machine.page_cache import drop_page_cache
from harness.machine.throttle import Throttle, ThrottleError, block_device

SUPPORT = detect()
THROTTLED_READ = """
import mmap, os, sys, time
sys.stdin.readline()
file, buffer = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT), mmap.mmap(-1, 1 << 20)
started = time.perf_counter()
for block in range(24):
    os.preadv(file, [buffer], block << 20)
print(time.perf_counter() - started)
"""


def test_the_kernel_holds_a_worker_to_the_disk_throttle(tmp_path: Path) -> None:
    file = tmp_path / "data"
    file.write_bytes(os.urandom(24 << 20))
    drop_page_cache([file])
    try:
        throttle = Throttle.of(tmp_path, 16 << 20)
        limit = MemoryLimit(None, "throttle", SUPPORT, throttle)
        with limit:
            command = limit.command([sys.executable, "-c", THROTTLED_READ, str(file)])
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            limit.add(process.pid)
            seconds = float(process.communicate("go\n", timeout=60)[0])
            assert limit.report().disk_read_limit_bytes_s == 16 << 20
    except ThrottleError as error:
        pytest.skip(f"no disk throttle here: {error}")
    assert seconds > 1.0, "24 MiB at 16 MiB/s"


def test_a_throttle_that_cannot_be_enforced_is_an_error(tmp_path: Path) -> None:
    none = detect(tmp_path)
    with (
        pytest.raises(ThrottleError, match="remove disk_read_limit"),
        MemoryLimit(None, "none", none, Throttle("8:0", 1000)),
    ):
        pass


def test_a_partition_s_throttle_is_put_on_its_disk(tmp_path: Path) -> None:
    number = os.stat(tmp_path).st_dev
    name = f"{os.major(number)}:{os.minor(number)}"
    with pytest.raises(ThrottleError, match="no block device of its own"):
        block_device(tmp_path, tmp_path)
    partition = tmp_path / "sda" / "sda1"
    partition.mkdir(parents=True)
    (partition / "partition").write_text("1")
    (tmp_path / "sda" / "dev").write_text("8:0\n")
    (tmp_path / name).symlink_to(partition)
    assert block_device(tmp_path, tmp_path) == "8:0"
    assert Throttle("8:0", 5).v2_line == "8:0 rbps=5"


def test_v2_throttles_are_written_to_the_group(tmp_path: Path) -> None:
    support = limits.LimitSupport("cgroup-v2", (tmp_path,))
    with MemoryLimit(64 << 20, "v2", support, Throttle("8:0", 1000)) as limit:
        group = limit.group()
        assert (group / "io.max").read_text() == "8:0 rbps=1000"
        for file in group.iterdir():
            file.unlink()  # a real cgroup's files vanish with it
