"""A folder in memory is not called a disk: by doctor, by calibrate, in records and on pages."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.machine import calibrate, doctor
from harness.machine.storage import Storage


@pytest.fixture
def in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder that the mount table says is on tmpfs; its parent is on ext4."""
    folder = tmp_path / "memory"
    folder.mkdir()
    mounts = [SimpleNamespace(mountpoint=str(p), fstype=t) for p, t in (("/", "ext4"), (folder, "tmpfs"))]
    monkeypatch.setattr("psutil.disk_partitions", lambda all: mounts)
    monkeypatch.setenv("SPECMOE_CACHE", str(folder / "cache"))
    return folder


def test_the_innermost_mount_counts(in_memory: Path) -> None:
    assert str(Storage.of(in_memory / "not" / "there")) == "tmpfs: memory, not a disk"
    assert str(Storage.of(in_memory.parent)) == "ext4"


def test_doctor_says_that_the_cache_folder_is_not_on_a_disk(in_memory: Path) -> None:
    (found,) = [check for check in doctor.examine() if check.name == "disk"]
    assert not found.ok
    assert found.detail == f"{in_memory / 'cache'} is on tmpfs: memory, not a disk"
    assert "SPECMOE_CACHE" in found.fix


def test_memory_is_not_calibrated_as_a_disk(in_memory: Path) -> None:
    assert calibrate.disk_read_gb_s(in_memory, 1 << 20) is None
