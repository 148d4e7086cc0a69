"""A kernel throttle on the disk reads of a worker, which emulates a slower disk: device and rate."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self

SYS_BLOCK = Path("/sys/dev/block")


class ThrottleError(OSError):
    """The device of the files cannot be throttled; the message gives cause and fix."""


@dataclass(frozen=True)
class Throttle:
    """Reads from one whole disk at no more than ``read_bytes_s``; ``device`` is ``major:minor``."""

    device: str
    read_bytes_s: int

    @classmethod
    def of(cls, files: Path, read_bytes_s: int | None) -> Self | None:
        """A throttle for the disk that holds ``files`` (an existing file or folder); None without a rate.

        Raises:
            ThrottleError: their file system has no block device.
        """
        return None if read_bytes_s is None else cls(block_device(files), read_bytes_s)

    @property
    def v1_line(self) -> str:
        """The line for ``blkio.throttle.read_bps_device`` (cgroup v1)."""
        return f"{self.device} {self.read_bytes_s}"

    @property
    def v2_line(self) -> str:
        """The line for ``io.max`` (cgroup v2)."""
        return f"{self.device} rbps={self.read_bytes_s}"

    @property
    def systemd_property(self) -> str:
        return f"IOReadBandwidthMax=/dev/block/{self.device} {self.read_bytes_s}"


def block_device(files: Path, sys_block: Path = SYS_BLOCK) -> str:
    """``major:minor`` of the whole disk (not the partition: the kernel throttles disks) that holds ``files``.

    Raises:
        ThrottleError: the file system has no block device (overlay, tmpfs, network, btrfs).
    """
    number = os.stat(files).st_dev
    name = f"{os.major(number)}:{os.minor(number)}"
    entry = sys_block / name
    if not entry.exists():
        raise ThrottleError(
            f"reads of {files} cannot be throttled: its file system has no block device of its own (device {name}); "
            "set SPECMOE_CACHE to a folder on a local disk, or remove disk_read_limit"
        )
    folder = entry.resolve()
    if (folder / "partition").exists():
        return (folder.parent / "dev").read_text().strip()
    return name
