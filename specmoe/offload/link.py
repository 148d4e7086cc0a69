"""The link: moves expert bytes from the slow tier to the device, and is the only place that counts them."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Protocol

import torch

from specmoe.offload.counters import LinkStats
from specmoe.offload.device import Copy, Device, host_bytes
from specmoe.offload.slow_tier import Pace
from specmoe.offload.sources import Source
from specmoe.offload.store import ExpertStore
from specmoe.offload.transfers import Transfer, TransferQueue
from specmoe.timeline import Timeline


class Mover(Protocol):
    """What residency needs of a link; a replay that moves no bytes provides it too."""

    def submit(self, layer: int, expert: int, slot: torch.Tensor, ahead: bool = False) -> Transfer: ...

    def promote(self, transfer: Transfer) -> None: ...

    def withdraw(self, transfer: Transfer) -> bool: ...

    def wait(self, transfer: Transfer) -> None: ...


STAGING_BUFFERS = 2
"""Through which experts go from a disk to a device that it cannot write: one is read into while another is copied."""
COPIES_UNDER_WAY = 4
"""From host memory: the copy engine must not wait until this thread has heard of the last one."""


@dataclass
class _Started:
    """A transfer whose copy is under way: when it began, the bytes, and whether it came through a staging buffer."""

    transfer: Transfer
    copy: Copy
    started: float
    nbytes: int
    staged: bool


class Link:
    """Moves experts into slots on one background thread, demanded ones before prefetched ones.

    One thread saturates the disks this was measured on; its reads release the interpreter lock, so transfers
    run concurrently with compute.  On a device with copies of its own, some are under way at once, in order.  Every
    expert's checksum is verified the first time it arrives, unless the source did so.  A ``pace`` makes transfers as
    slow as those of a stated interconnect.
    """

    def __init__(self, source: Source, store: ExpertStore, device: Device, pace: Pace | None = None) -> None:
        self.stats = LinkStats()
        self.timeline = Timeline(enabled=False)
        self._source, self._store, self._device, self._pace = source, store, device, pace
        self._checked: set[tuple[int, int]] = set()
        self._staging: list[torch.Tensor] = []
        self._staged = 0  # experts that went through them
        self._under_way: deque[_Started] = deque()
        self._busy_until = 0.0
        self._queue = TransferQueue()
        self._moving = False
        self._thread = threading.Thread(target=self._run, name="specmoe-link", daemon=True)
        self._thread.start()

    def submit(self, layer: int, expert: int, slot: torch.Tensor, ahead: bool = False) -> Transfer:
        """Queue the transfer of one expert into ``slot`` (uint8, at least what the source reads).

        ``ahead`` marks a prefetch, which every demanded transfer overtakes.

        Raises:
            SpecMoEError: the link is closed.
        """
        transfer = Transfer(layer, expert, slot, self._device.mark())
        self._queue.put(transfer, ahead)
        return transfer

    def promote(self, transfer: Transfer) -> None:
        """Turn a prefetch into a demanded transfer, unless it has begun."""
        self._queue.promote(transfer)

    def withdraw(self, transfer: Transfer) -> bool:
        """Cancel a prefetch that has not begun; False if it has begun or ended."""
        return self._queue.withdraw(transfer)

    @property
    def queued(self) -> int:
        """Transfers submitted that have not begun."""
        return len(self._queue)

    @property
    def moving(self) -> bool:
        """Whether a transfer is under way."""
        return self._moving

    def wait(self, transfer: Transfer) -> None:
        """Wait for a transfer and count the time compute waited."""
        waited = transfer.wait()
        self.stats.wait_s += waited
        if self.timeline.enabled:
            now = time.perf_counter()
            self.timeline.add("wait", "wait", now - waited, now)

    def snapshot(self) -> LinkStats:
        """A copy of the counters; subtract two with ``since``."""
        return self.stats.copy()

    def since(self, before: LinkStats) -> LinkStats:
        """What happened after ``before`` was taken."""
        return self.stats.since(before)

    def close(self) -> None:
        """Finish queued transfers, stop the thread and close the source; may be called twice."""
        if self._thread.is_alive():
            self._queue.close()
            self._thread.join()
            self._source.close()
            for buffer in self._staging:
                self._device.release(buffer)

    def _run(self) -> None:
        while True:
            transfer = self._queue.get(wait=not self._under_way)
            if transfer is not None:
                self._begin(transfer)
            elif self._under_way:
                self._complete()
            else:
                return
            self._moving = bool(self._under_way)

    def _begin(self, transfer: Transfer) -> None:
        """Move an expert, or start its copy; at most as many are under way as there are buffers for."""
        started, self._moving = time.perf_counter(), True
        try:
            moved = self._move(transfer, started)
        except BaseException as error:  # raised by the side that waits
            transfer.finish(error)
            return
        if isinstance(moved, int):
            self._arrived(transfer, started, moved, None)
            return
        self._under_way.append(moved)
        most = STAGING_BUFFERS if moved.staged else COPIES_UNDER_WAY
        while len(self._under_way) >= (1 if self._pace is not None else most):
            self._complete()

    def _complete(self) -> None:
        """Wait for the oldest copy under way."""
        oldest = self._under_way.popleft()
        try:
            seconds = oldest.copy.wait()
        except BaseException as error:  # raised by the side that waits
            oldest.transfer.finish(error)
            return
        self._arrived(oldest.transfer, oldest.started, oldest.nbytes, None if oldest.staged else seconds)

    def _arrived(self, transfer: Transfer, started: float, nbytes: int, copied_s: float | None) -> None:
        """Count a transfer and let compute go on; ``copied_s`` by the device's clock, where all of it is a copy."""
        if self._pace is not None:
            self._pace.hold(nbytes, started)
        ended = time.perf_counter()
        if copied_s is None or self._pace is not None:
            copied_s = ended - max(started, self._busy_until)
        self._busy_until = ended
        self.stats.busy_s += copied_s
        self.stats.moved_bytes += nbytes
        self.stats.transfers += 1
        self.timeline.add("link", f"layer {transfer.layer} expert {transfer.expert}", started, ended)
        self._moving = bool(self._under_way)
        transfer.finish()

    def _move(self, transfer: Transfer, started: float) -> int | _Started:
        """Bytes that have arrived, or the copy that brings them."""
        layer, expert, slot = transfer.layer, transfer.expert, transfer.slot
        target = self._device.host_buffer(slot)
        if target is not None:
            moved = self._source.read(layer, expert, target)
            self._check(layer, expert, target)
            return moved
        host = self._source.view(layer, expert)
        staged = host is None
        if host is None:
            buffer = self._next_buffer(len(slot))
            host = buffer[: self._source.read(layer, expert, host_bytes(buffer))]
        self._check(layer, expert, host_bytes(host))
        copy = self._device.upload(host, slot[: len(host)], transfer.after)
        return len(host) if copy is None else _Started(transfer, copy, started, len(host), staged)

    def _next_buffer(self, nbytes: int) -> torch.Tensor:
        """A staging buffer that no copy reads from any more."""
        if len(self._staging) < STAGING_BUFFERS:
            self._staging.append(self._device.staging(max(nbytes, self._store.slot_bytes)))
        buffer = self._staging[self._staged % STAGING_BUFFERS]
        self._staged += 1
        return buffer

    def _check(self, layer: int, expert: int, data: memoryview) -> None:
        if (layer, expert) not in self._checked:
            self._source.check(layer, expert, data)
            self._checked.add((layer, expert))
