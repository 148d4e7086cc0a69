"""Memory traffic from the memory controllers' counters (Intel ``uncore_imc``) by perf_event_open(2).

Needs a machine that exposes them (few virtual machines do) and the right to count system-wide.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import re
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Self

DEVICES = Path("/sys/bus/event_source/devices")
_SYSCALL = {"x86_64": 298, "aarch64": 241}
_ATTR = struct.Struct("=IIQQQQQIIQ")  # perf_event_attr, version 0: 64 bytes
_UNITS = {"MiB": float(1 << 20), "KiB": float(1 << 10), "B": 1.0}


def open_event(kind: int, config: int, cpu: int) -> int:
    """A running counter of one event for all processes on ``cpu``; returns its file descriptor.

    Raises:
        OSError: not permitted, or no such event.
    """
    number = _SYSCALL.get(platform.machine())
    if number is None:
        raise OSError(f"perf_event_open is not known for {platform.machine()}")
    attr = ctypes.create_string_buffer(_ATTR.pack(kind, _ATTR.size, config, 0, 0, 0, 0, 0, 0, 0), _ATTR.size)
    libc = ctypes.CDLL(None, use_errno=True)
    file: int = libc.syscall(number, ctypes.byref(attr), -1, cpu, -1, 0)
    if file < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return file


def read_event(file: int) -> int:
    """The count so far."""
    return int.from_bytes(os.read(file, 8), "little")


def encode(event: str, formats: dict[str, str]) -> int:
    """The ``config`` of an event such as ``event=0x04,umask=0x03``, with the bit fields of sysfs (``config:8-15``).

    Raises:
        ValueError: a term that is not in ``config``.
    """
    config = 0
    for term in event.strip().split(","):
        name, _, value = term.partition("=")
        place = re.fullmatch(r"config:(\d+)(?:-\d+)?", formats.get(name, ""))
        if place is None:
            raise ValueError(f"event term {name!r} is not understood")
        config |= int(value or "1", 0) << int(place[1])
    return config


class MemoryCounters:
    """Open counters of all memory channels; ``available`` is False if there are none, and ``reason`` says why."""

    def __init__(self, devices: Path = DEVICES) -> None:
        self._open: list[tuple[int, float]] = []  # (descriptor, bytes per count)
        self.reason: str | None = None
        controllers = sorted(devices.glob("uncore_imc*")) if devices.exists() else []
        if not controllers:
            self.reason = "no memory-controller counters (uncore_imc) on this machine"
            return
        try:
            for controller in controllers:
                self._open_controller(controller)
        except (OSError, ValueError) as error:
            self.close()
            self.reason = f"memory-controller counters cannot be opened ({error})"
        if not self._open and self.reason is None:
            self.reason = "the memory controllers offer no cas_count events"

    @property
    def available(self) -> bool:
        return bool(self._open)

    def _open_controller(self, controller: Path) -> None:
        kind = int((controller / "type").read_text())
        cpus = [int(part.split("-")[0]) for part in (controller / "cpumask").read_text().strip().split(",")]
        formats = {file.name: file.read_text().strip() for file in (controller / "format").iterdir()}
        for name in ("cas_count_read", "cas_count_write"):
            event = controller / "events" / name
            if not event.exists():
                continue
            scale = float(event.with_name(f"{name}.scale").read_text())
            unit = _UNITS[event.with_name(f"{name}.unit").read_text().strip()]
            config = encode(event.read_text(), formats)
            self._open += [(open_event(kind, config, cpu), scale * unit) for cpu in cpus]

    def total_bytes(self) -> float | None:
        """Bytes read and written by the whole machine since the counters were opened."""
        return sum(read_event(file) * scale for file, scale in self._open) if self._open else None

    def close(self) -> None:
        _close(file for file, _ in self._open)
        self._open = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _close(files: Iterable[int]) -> None:
    for file in files:
        with contextlib.suppress(OSError):
            os.close(file)
