"""The file system of a folder, and whether it keeps files in memory instead of on a disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psutil

_IN_MEMORY = {"tmpfs", "ramfs", "devtmpfs"}


@dataclass(frozen=True)
class Storage:
    """``filesystem`` is the kernel's name, such as ``ext4``, or ``unknown``."""

    filesystem: str

    @classmethod
    def of(cls, folder: Path) -> Storage:
        """Of the mount that holds ``folder``, which may not exist yet."""
        place = folder.resolve()
        mounts = {Path(mount.mountpoint): mount.fstype for mount in psutil.disk_partitions(all=True)}  # last one on top
        found = next((mounts[parent] for parent in (place, *place.parents) if parent in mounts), "")
        return cls(found or "unknown")

    @property
    def in_memory(self) -> bool:
        """Whether files are in memory: reads accept O_DIRECT there, but no disk is read."""
        return self.filesystem in _IN_MEMORY

    def __str__(self) -> str:
        return f"{self.filesystem}: memory, not a disk" if self.in_memory else self.filesystem
