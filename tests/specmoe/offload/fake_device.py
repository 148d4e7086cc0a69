"""A device like a GPU without one: a compute and a copy stream, late copies, memory that the host cannot address.

It fails what a GPU would silently get wrong: a read before the copy has been waited for, an overwrite of a slot that
queued compute still reads, and a copy from memory that is not pinned.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Any

import torch

from specmoe.errors import HostMemoryError
from specmoe.offload.device import allocate_pages

POISON = 0xFF
"""Content of a slot while its copy is under way: NaN in every float dtype."""


class Misuse(AssertionError):
    """What would be a race on a GPU."""


class Stream:
    """Work done in order by a thread of its own."""

    def __init__(self) -> None:
        self._work: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            self._work.get()()

    def put(self, work: Callable[[], None]) -> threading.Event:
        """Queue work; the event is set once it has been done."""
        done = threading.Event()

        def both() -> None:
            work()
            done.set()

        self._work.put(both)
        return done


class FakeCopy:
    """What ``upload`` returns; ``wait`` raises the misuse that was seen."""

    def __init__(self, device: FakeDevice, slot: int) -> None:
        self.device, self.slot = device, slot
        self.done = threading.Event()
        self.misuse: Misuse | None = None

    def wait(self) -> float:
        assert self.done.wait(10)
        self.device.unwaited.pop(self.slot, None)
        if self.misuse is not None:
            raise self.misuse
        return self.device.delay_s


class FakeDevice:
    """``delay_s`` is what every copy takes at least, ``pinnable_bytes`` what the host can pin at once."""

    torch_device = torch.device("cpu")

    def __init__(self, delay_s: float = 0.002, pinnable_bytes: int = 1 << 40) -> None:
        self.delay_s, self._left_bytes = delay_s, pinnable_bytes
        self.compute, self.copies = Stream(), Stream()
        self.pinned: dict[int, torch.Tensor] = {}
        self.unwaited: dict[int, FakeCopy] = {}  # copies by the slot's address
        self.readers: dict[int, int] = {}  # queued kernels by the slot's address
        self._lock = threading.Lock()

    def allocate(self, nbytes: int) -> torch.Tensor:
        return allocate_pages(nbytes).fill_(POISON)

    def host_buffer(self, slot: torch.Tensor) -> memoryview | None:
        return None

    def staging(self, nbytes: int) -> torch.Tensor:
        if nbytes > self._left_bytes:
            raise HostMemoryError(f"cannot pin {nbytes} bytes")
        self._left_bytes -= nbytes
        memory = allocate_pages(nbytes)
        self.pinned[memory.data_ptr()] = memory
        return memory

    def release(self, staging: torch.Tensor) -> None:
        self._left_bytes += len(self.pinned.pop(staging.data_ptr()))

    def mark(self) -> threading.Event:
        return self.compute.put(lambda: None)

    def upload(self, source: torch.Tensor, slot: torch.Tensor, after: Any = None) -> FakeCopy:
        start = source.data_ptr()
        if not any(held <= start and start + len(source) <= held + len(m) for held, m in self.pinned.items()):
            raise Misuse("a copy from memory that is not pinned")
        copy = FakeCopy(self, slot.data_ptr())
        self.unwaited[copy.slot] = copy

        def run() -> None:
            if after is not None:
                assert after.wait(10)
            with self._lock:
                if self.readers.get(copy.slot):
                    copy.misuse = Misuse("an overwrite of a slot that queued compute still reads")
            slot.fill_(POISON)
            time.sleep(self.delay_s)
            slot.copy_(source)
            copy.done.set()

        self.copies.put(run)
        return copy

    def launch(self, slot: torch.Tensor) -> Callable[[], torch.Tensor]:
        """Queue a kernel that reads a slot after a while; calling the result waits for what it read."""
        address = slot.data_ptr()
        if address in self.unwaited:
            raise Misuse("a read of a slot before its copy was waited for")
        found: list[torch.Tensor] = []
        with self._lock:
            self.readers[address] = self.readers.get(address, 0) + 1

        def run() -> None:
            time.sleep(2 * self.delay_s)
            found.append(slot.clone())
            with self._lock:
                self.readers[address] -= 1

        done = self.compute.put(run)

        def result() -> torch.Tensor:
            assert done.wait(10)
            return found[0]

        return result
