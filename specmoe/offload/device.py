"""The device tier: the memory of expert slots and how bytes get into it.

Two devices satisfy the protocol.  ``CpuDevice`` slots are page-aligned RAM that a disk read can target
directly (the paper's SSD scenario on any machine).  ``CudaDevice`` slots are GPU memory, filled from pinned
host memory on a separate copy stream, so that transfers run concurrently with compute.
"""

from __future__ import annotations

import contextlib
import mmap
import re
from typing import Any, Protocol

import torch

from specmoe.errors import HostMemoryError

PAGE_BYTES = 4096


class Copy(Protocol):
    """A copy into a slot that may still be under way."""

    def wait(self) -> float:
        """Block until the slot holds the bytes, for compute queued from then on; returns the seconds it copied."""
        ...


class Device(Protocol):
    """What the arena and the link need of a device.

    ``tests/specmoe/offload/test_device_contract.py`` holds every device to it.
    """

    torch_device: torch.device

    def allocate(self, nbytes: int) -> torch.Tensor:
        """A uint8 tensor [nbytes] in device memory; page-aligned if the host can address it."""
        ...

    def host_buffer(self, slot: torch.Tensor) -> memoryview | None:
        """The slot as writable host memory, or None when the host cannot write it directly."""
        ...

    def staging(self, nbytes: int) -> torch.Tensor:
        """A page-aligned host uint8 tensor [nbytes] from which ``upload`` is fast (pinned on CUDA).

        Raises:
            HostMemoryError: the host cannot pin that much.
        """
        ...

    def release(self, staging: torch.Tensor) -> None:
        """Give back what ``staging`` returned; no copy from it is under way."""
        ...

    def mark(self) -> Any:
        """The compute that this thread has queued so far, for ``upload``; None if it has ended."""
        ...

    def upload(self, source: torch.Tensor, slot: torch.Tensor, after: Any = None) -> Copy | None:
        """Copy host bytes (memory of ``staging``) to a slot, once the compute of the mark ``after`` has ended.

        Both must stay as they are until the copy has ended.  None if it has already.
        """
        ...


def allocate_pages(nbytes: int) -> torch.Tensor:
    """Page-aligned, zero-filled host memory as a uint8 tensor [nbytes]; pages are allocated on first touch.

    The pages are private and, where the kernel can, huge: O_DIRECT reads into them are faster than into shared ones.
    Children of this process do not inherit them, since a read under way during a fork could miss its page.
    """
    memory = mmap.mmap(-1, max(nbytes, PAGE_BYTES), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for advice in ("MADV_DONTFORK", "MADV_HUGEPAGE"):  # Linux
        with contextlib.suppress(AttributeError, OSError):  # or a kernel without huge pages
            memory.madvise(getattr(mmap, advice))
    return torch.frombuffer(memory, dtype=torch.uint8)[:nbytes]


def host_bytes(memory: torch.Tensor) -> memoryview:
    """A host uint8 tensor as writable bytes, without a copy."""
    return memory.numpy().data


class CpuDevice:
    """RAM as the device tier."""

    torch_device = torch.device("cpu")

    def allocate(self, nbytes: int) -> torch.Tensor:
        return allocate_pages(nbytes)

    def host_buffer(self, slot: torch.Tensor) -> memoryview | None:
        return host_bytes(slot)

    def staging(self, nbytes: int) -> torch.Tensor:
        return allocate_pages(nbytes)

    def release(self, staging: torch.Tensor) -> None:
        """Nothing: the memory goes with its last tensor."""

    def mark(self) -> None:
        return None

    def upload(self, source: torch.Tensor, slot: torch.Tensor, after: None = None) -> None:
        slot.copy_(source)


class CudaDevice:
    """GPU memory as the device tier.

    Raises:
        RuntimeError: from torch, when no CUDA device is usable.
    """

    def __init__(self, index: int = 0) -> None:
        self.torch_device = torch.device("cuda", index)
        self._stream = torch.cuda.Stream(self.torch_device)
        self._pinned: dict[int, torch.Tensor] = {}  # by address

    def allocate(self, nbytes: int) -> torch.Tensor:
        return torch.empty(nbytes, dtype=torch.uint8, device=self.torch_device)

    def host_buffer(self, slot: torch.Tensor) -> memoryview | None:
        return None

    def staging(self, nbytes: int) -> torch.Tensor:
        memory = allocate_pages(nbytes)  # torch's own pinned memory is rounded up to a power of two
        runtime = torch.cuda.cudart()
        with torch.cuda.device(self.torch_device):
            status = runtime.cudaHostRegister(memory.data_ptr(), nbytes, 0)
        if int(status):
            raise HostMemoryError(f"CUDA cannot pin {nbytes} bytes of host memory ({status})")
        self._pinned[memory.data_ptr()] = memory
        return memory

    def release(self, staging: torch.Tensor) -> None:
        if self._pinned.pop(staging.data_ptr(), None) is not None:
            torch.cuda.cudart().cudaHostUnregister(staging.data_ptr())

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self.torch_device))
        return event

    def upload(self, source: torch.Tensor, slot: torch.Tensor, after: torch.cuda.Event | None = None) -> Copy:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        with torch.cuda.stream(self._stream):
            if after is not None:
                self._stream.wait_event(after)
            begin.record(self._stream)
            slot.copy_(source, non_blocking=True)
            end.record(self._stream)
        return _CudaCopy(begin, end)


class _CudaCopy:
    """A copy between two events of the copy stream."""

    def __init__(self, begin: torch.cuda.Event, end: torch.cuda.Event) -> None:
        self._begin, self._end = begin, end

    def wait(self) -> float:
        self._end.synchronize()
        return float(self._begin.elapsed_time(self._end)) / 1e3


def open_device(name: str | torch.device) -> Device:
    """The device named ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.

    Raises:
        ValueError: unknown device type, CUDA where torch sees no GPU, or a GPU of a number that it does not see.
    """
    known = canonical(str(name))
    check_device(known)
    return CpuDevice() if known == "cpu" else CudaDevice(torch.device(known).index or 0)


def canonical(name: str) -> str:
    """``cpu``, ``cuda`` or ``cuda:1``; the first GPU is ``cuda``.

    Raises:
        ValueError: another device type, or no device at all.
    """
    found = re.fullmatch(r"cpu|cuda(?::0*([0-9]+))?", name)
    if found is None:
        raise ValueError(f"device {name!r} is not supported: use 'cpu', 'cuda' or 'cuda:1'")
    return f"cuda:{int(found[1])}" if found[1] and int(found[1]) else name.partition(":")[0]


def check_device(name: str) -> None:
    """Check that torch sees a device of a canonical name.

    Raises:
        ValueError: it does not.
    """
    if name == "cpu":
        return
    if not torch.cuda.is_available():
        raise ValueError(f"device {name!r} requested, but torch sees no CUDA GPU: use device='cpu'")
    index, count = torch.device(name).index or 0, torch.cuda.device_count()
    if index >= count:
        raise ValueError(f"device {name!r} requested, but torch sees {count} GPUs: use 'cuda' to 'cuda:{count - 1}'")


def default_device() -> str:
    """``cuda`` where torch sees a GPU, else ``cpu``."""
    return "cuda" if torch.cuda.is_available() else "cpu"
