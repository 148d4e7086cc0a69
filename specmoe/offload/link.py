"""The link: moves expert bytes from the slow tier to the device, and is the only place that counts them."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Protocol

import torch

from specmoe.errors import SpecMoEError
from specmoe.offload.counters import LinkStats
from specmoe.offload.device import Device, host_bytes
from specmoe.offload.slow_tier import Pace
from specmoe.offload.sources import Source
from specmoe.offload.store import ExpertStore
from specmoe.timeline import Timeline


class Transfer:
    """One expert being loaded; ``wait`` returns once compute may read the slot."""

    def __init__(self, layer: int, expert: int, slot: torch.Tensor) -> None:
        self.layer, self.expert, self.slot = layer, expert, slot
        self._done = threading.Event()
        self._event: torch.cuda.Event | None = None
        self._error: BaseException | None = None

    @property
    def done(self) -> bool:
        """Whether the transfer has ended, successfully or not."""
        return self._done.is_set()

    def finish(self, event: torch.cuda.Event | None, error: BaseException | None) -> None:
        self._event, self._error = event, error
        self._done.set()

    def wait(self) -> float:
        """Block until the bytes have arrived; returns seconds waited.

        Raises:
            StoreError: the read failed or the checksum differed.
        """
        started = time.perf_counter()
        self._done.wait()
        if self._error is not None:
            raise self._error
        if self._event is not None:
            torch.cuda.current_stream().wait_event(self._event)
        return time.perf_counter() - started


class Mover(Protocol):
    """What residency needs of a link; a replay that moves no bytes provides it too."""

    def submit(self, layer: int, expert: int, slot: torch.Tensor, ahead: bool = False) -> Transfer: ...

    def promote(self, transfer: Transfer) -> None: ...

    def withdraw(self, transfer: Transfer) -> bool: ...

    def wait(self, transfer: Transfer) -> None: ...


class _Queue:
    """Transfers that have not begun: demanded ones first, then prefetches, each in order of submission."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._demanded: deque[Transfer] = deque()
        self._ahead: deque[Transfer] = deque()
        self._closed = False

    def put(self, transfer: Transfer, ahead: bool) -> None:
        with self._changed:
            if self._closed:
                raise SpecMoEError("the link is closed because the engine was: load the model again")
            (self._ahead if ahead else self._demanded).append(transfer)
            self._changed.notify()

    def promote(self, transfer: Transfer) -> None:
        """Turn a prefetch into a demanded transfer, unless it has begun."""
        with self._changed:
            if transfer in self._ahead:
                self._ahead.remove(transfer)
                self._demanded.append(transfer)

    def withdraw(self, transfer: Transfer) -> bool:
        """Remove a prefetch; False if it has begun."""
        with self._changed:
            if transfer not in self._ahead:
                return False
            self._ahead.remove(transfer)
            return True

    def get(self) -> Transfer | None:
        """The next transfer; waits for one, and returns None once closed and empty."""
        with self._changed:
            while not (self._demanded or self._ahead or self._closed):
                self._changed.wait()
            queue = self._demanded or self._ahead
            return queue.popleft() if queue else None

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()

    def __len__(self) -> int:
        return len(self._demanded) + len(self._ahead)


class Link:
    """Moves experts into slots on one background thread, demanded ones before prefetched ones.

    One thread saturates the disks this was measured on; its reads release the interpreter lock, so transfers
    run concurrently with compute.  Every expert's checksum is verified the first time it arrives, unless the source
    did so.  A ``pace`` makes transfers as slow as those of a stated interconnect.
    """

    def __init__(self, source: Source, store: ExpertStore, device: Device, pace: Pace | None = None) -> None:
        self.stats = LinkStats()
        self.timeline = Timeline(enabled=False)
        self._source, self._store, self._device, self._pace = source, store, device, pace
        self._checked: set[tuple[int, int]] = set()
        self._staging: torch.Tensor | None = None
        self._queue = _Queue()
        self._moving = False
        self._thread = threading.Thread(target=self._run, name="specmoe-link", daemon=True)
        self._thread.start()

    def submit(self, layer: int, expert: int, slot: torch.Tensor, ahead: bool = False) -> Transfer:
        """Queue the transfer of one expert into ``slot`` (uint8, at least what the source reads).

        ``ahead`` marks a prefetch, which every demanded transfer overtakes.

        Raises:
            SpecMoEError: the link is closed.
        """
        transfer = Transfer(layer, expert, slot)
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

    def _run(self) -> None:
        while (transfer := self._queue.get()) is not None:
            started, self._moving = time.perf_counter(), True
            before = self.stats.moved_bytes
            try:
                event = self._move(transfer.layer, transfer.expert, transfer.slot)
                if self._pace is not None:
                    self._pace.hold(self.stats.moved_bytes - before, started)
            except BaseException as error:  # raised by the side that waits
                self._moving = False
                transfer.finish(None, error)
                continue
            ended = time.perf_counter()
            self.stats.busy_s += ended - started
            self.stats.transfers += 1
            self.timeline.add("link", f"layer {transfer.layer} expert {transfer.expert}", started, ended)
            self._moving = False
            transfer.finish(event, None)

    def _move(self, layer: int, expert: int, slot: torch.Tensor) -> torch.cuda.Event | None:
        target = self._device.host_buffer(slot)
        if target is not None:
            self.stats.moved_bytes += self._source.read(layer, expert, target)
            self._check(layer, expert, target)
            return None
        host = self._source.view(layer, expert)
        if host is None:
            if self._staging is None:
                self._staging = self._device.staging(max(len(slot), self._store.slot_bytes))
            host = self._staging[: self._source.read(layer, expert, host_bytes(self._staging))]
        self._check(layer, expert, host_bytes(host))
        event = self._device.upload(host, slot[: len(host)])
        if event is not None:
            event.synchronize()  # the transfer's time ends here, and the staging buffer is free for the next
        self.stats.moved_bytes += len(host)
        return event

    def _check(self, layer: int, expert: int, data: memoryview) -> None:
        if (layer, expert) not in self._checked:
            self._source.check(layer, expert, data)
            self._checked.add((layer, expert))
