"""The link: the only mover of expert bytes from the slow tier to the device tier, and their only counter."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass, replace
from queue import SimpleQueue
from typing import Protocol

import torch

from specmoe.device import Device, host_bytes
from specmoe.errors import StoreError
from specmoe.store import ExpertStore


@dataclass
class LinkStats:
    """Running totals since the link was opened.

    ``busy_s`` is time in which at least one transfer was under way; ``wait_s`` is time the compute
    side stood still for one.
    """

    moved_bytes: int = 0
    transfers: int = 0
    busy_s: float = 0.0
    wait_s: float = 0.0


class Source(Protocol):
    """Where a link takes an expert's bytes from."""

    def read(self, position: int, expert: int, out: memoryview) -> int:
        """Fill ``out`` (stride_bytes) with the expert; returns bytes read from the slow tier."""
        ...

    def view(self, position: int, expert: int) -> torch.Tensor | None:
        """The expert as host memory (uint8 [stride_bytes]) to upload from, or None when it must be read."""
        ...

    def close(self) -> None: ...


class DiskSource:
    """Reads a store's files past the page cache.

    O_DIRECT goes straight into the (page-aligned) target.  Where the file system refuses it, reads are
    buffered and the pages dropped afterwards, so that the page cache does not become a hidden tier;
    ``direct`` says which of the two is in force.
    """

    def __init__(self, store: ExpertStore) -> None:
        self.store = store
        paths = [store.layer_file(position) for position in range(len(store.layers))]
        self._files: list[int] = []
        try:
            for path in paths:
                self._files.append(os.open(path, os.O_RDONLY | os.O_DIRECT))
            self.direct = True
        except OSError:
            self.close()
            self._files = [os.open(path, os.O_RDONLY) for path in paths]
            self.direct = False

    def read(self, position: int, expert: int, out: memoryview) -> int:
        spec = self.store.layers[position]
        file, offset = self._files[position], expert * spec.stride_bytes
        done = 0
        while done < spec.stride_bytes:
            count = os.preadv(file, [out[done : spec.stride_bytes]], offset + done)
            if count == 0:
                raise StoreError(
                    f"{self.store.layer_file(position)} ended inside expert {expert}: "
                    "it was truncated while open; delete the store folder and convert again"
                )
            done += count
        if not self.direct:
            os.posix_fadvise(file, offset, spec.stride_bytes, os.POSIX_FADV_DONTNEED)
        return done

    def view(self, position: int, expert: int) -> torch.Tensor | None:
        return None

    def close(self) -> None:
        for file in self._files:
            os.close(file)
        self._files = []


class HostSource:
    """Holds a whole store in host memory (pinned when the device is CUDA): the paper's main setting.

    Raises:
        MemoryError or RuntimeError: the host cannot hold ``store.total_bytes``.
    """

    def __init__(self, store: ExpertStore, device: Device) -> None:
        self.store = store
        disk = DiskSource(store)
        self._layers: list[torch.Tensor] = []
        for position, spec in enumerate(store.layers):
            memory = device.staging(spec.experts * spec.stride_bytes)
            for expert in range(spec.experts):
                disk.read(position, expert, host_bytes(self._expert(memory, position, expert)))
            self._layers.append(memory)
        disk.close()

    def _expert(self, memory: torch.Tensor, position: int, expert: int) -> torch.Tensor:
        stride = self.store.layers[position].stride_bytes
        return memory[expert * stride : (expert + 1) * stride]

    def view(self, position: int, expert: int) -> torch.Tensor:
        return self._expert(self._layers[position], position, expert)

    def read(self, position: int, expert: int, out: memoryview) -> int:
        source = host_bytes(self.view(position, expert))
        out[: len(source)] = source
        return len(source)

    def close(self) -> None:
        self._layers = []


class Transfer:
    """One expert on its way; ``wait`` returns once compute may read the slot."""

    def __init__(self) -> None:
        self._done = threading.Event()
        self._event: torch.cuda.Event | None = None
        self._error: BaseException | None = None

    def finish(self, event: torch.cuda.Event | None, error: BaseException | None) -> None:
        self._event, self._error = event, error
        self._done.set()

    def wait(self) -> float:
        """Block until the bytes are there; returns seconds waited.

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


class Link:
    """Moves experts into slots in the order submitted, on one background thread.

    One thread saturates the disks this was measured on; its reads release the interpreter, so transfers
    run beside compute.  Every expert's checksum is compared the first time it arrives.
    """

    def __init__(self, source: Source, store: ExpertStore, device: Device) -> None:
        self.stats = LinkStats()
        self._source, self._store, self._device = source, store, device
        self._unchecked = [set(range(spec.experts)) for spec in store.layers]
        self._staging: torch.Tensor | None = None
        self._queue: SimpleQueue[tuple[int, int, torch.Tensor, Transfer] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="specmoe-link", daemon=True)
        self._thread.start()

    def submit(self, position: int, expert: int, slot: torch.Tensor) -> Transfer:
        """Queue the transfer of one expert into ``slot`` (uint8, at least stride_bytes)."""
        transfer = Transfer()
        self._queue.put((position, expert, slot, transfer))
        return transfer

    def wait(self, transfer: Transfer) -> None:
        """Wait for a transfer and count the time compute stood still."""
        self.stats.wait_s += transfer.wait()

    def snapshot(self) -> LinkStats:
        """A copy of the counters; subtract two with ``since``."""
        return replace(self.stats)

    def since(self, before: LinkStats) -> LinkStats:
        """What happened after ``before`` was taken."""
        now = self.stats
        return LinkStats(
            now.moved_bytes - before.moved_bytes,
            now.transfers - before.transfers,
            now.busy_s - before.busy_s,
            now.wait_s - before.wait_s,
        )

    def close(self) -> None:
        """Finish queued transfers, stop the thread, close the source; safe to call twice."""
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()
            self._source.close()

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            position, expert, slot, transfer = item
            started = time.perf_counter()
            try:
                event = self._move(position, expert, slot)
            except BaseException as error:  # handed to the waiting side, which raises it
                transfer.finish(None, error)
                continue
            self.stats.busy_s += time.perf_counter() - started
            self.stats.transfers += 1
            transfer.finish(event, None)

    def _move(self, position: int, expert: int, slot: torch.Tensor) -> torch.cuda.Event | None:
        stride = self._store.layers[position].stride_bytes
        target = self._device.host_buffer(slot)
        if target is not None:
            self.stats.moved_bytes += self._source.read(position, expert, target)
            self._check(position, expert, target)
            return None
        host = self._source.view(position, expert)
        if host is None:
            if self._staging is None:
                self._staging = self._device.staging(self._store.slot_bytes)
            host = self._staging[:stride]
            self._source.read(position, expert, host_bytes(host))
        self._check(position, expert, host_bytes(host))
        event = self._device.upload(host, slot[:stride])
        if event is not None:
            event.synchronize()  # ends the transfer's time, and frees the staging buffer for the next
        self.stats.moved_bytes += stride
        return event

    def _check(self, position: int, expert: int, data: memoryview) -> None:
        if expert in self._unchecked[position]:
            self._store.check(position, expert, data)
            self._unchecked[position].discard(expert)
