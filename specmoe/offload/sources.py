"""The slow tier: disk or host memory from which the link reads experts."""

from __future__ import annotations

import errno
import fcntl
import os
import warnings
from typing import Protocol

import numpy as np
import psutil
import torch

from specmoe.errors import BufferedReadsWarning, HostMemoryError, StoreError
from specmoe.offload.device import PAGE_BYTES, Device, host_bytes
from specmoe.offload.slow_tier import SlowTier
from specmoe.offload.store import ExpertStore

CHUNK_BYTES = 1 << 29
_MEMORY_FIX = "free host memory, raise the limit of locked memory (ulimit -l), or use slow_tier='disk'"
_DIRECT_REFUSED = {errno.EINVAL, errno.EOPNOTSUPP}


class Source(Protocol):
    """What the link needs of a slow tier."""

    def read(self, layer: int, expert: int, out: memoryview) -> int:
        """Fill ``out`` (stride_bytes) with the expert; returns the bytes read."""
        ...

    def view(self, layer: int, expert: int) -> torch.Tensor | None:
        """The expert as host memory (uint8 [stride_bytes]) to upload from, or None if it must be read."""
        ...

    def check(self, layer: int, expert: int, data: memoryview) -> None:
        """Compare an expert's bytes with its checksum; raises StoreError if they differ."""
        ...

    def close(self) -> None: ...


class DiskSource:
    """Reads a store's files past the page cache.

    With O_DIRECT, reads go straight into the (page-aligned) target.  If the file system refuses it, on opening or at
    a read, or ends a read inside a page, reads are buffered from then on and their pages dropped afterwards, so that
    the page cache does not become a hidden tier; ``direct`` tells which of the two is used.
    """

    def __init__(self, store: ExpertStore) -> None:
        self.store = store
        paths = [store.layer_file(layer) for layer in range(len(store.layers))]
        self._files: list[int] = []
        try:
            for path in paths:
                self._files.append(os.open(path, os.O_RDONLY | os.O_DIRECT))
            self.direct = True
        except OSError:
            self.close()
            self._files = [os.open(path, os.O_RDONLY) for path in paths]
            self._note_buffered()

    def read(self, layer: int, expert: int, out: memoryview) -> int:
        spec = self.store.layers[layer]
        file, offset = self._files[layer], expert * spec.stride_bytes
        done = 0
        while done < spec.stride_bytes:
            try:
                count = os.preadv(file, [out[done : spec.stride_bytes]], offset + done)
            except OSError as error:
                if not (self.direct and error.errno in _DIRECT_REFUSED):
                    raise StoreError(
                        f"{self.store.layer_file(layer)} cannot be read ({error.strerror}): check its disk, "
                        "or delete the store folder and convert the checkpoint again"
                    ) from error
                self._read_buffered()
                continue
            if self.direct and count % PAGE_BYTES:
                self._read_buffered()  # the rest begins inside a page, where O_DIRECT cannot read
            if count == 0:
                raise StoreError(
                    f"{self.store.layer_file(layer)} ended inside expert {expert}: "
                    "it was truncated while open: delete the store folder and convert the checkpoint again"
                )
            done += count
        if not self.direct:
            os.posix_fadvise(file, offset, spec.stride_bytes, os.POSIX_FADV_DONTNEED)
        return done

    def _read_buffered(self) -> None:
        """Read through the page cache from now on; the open files stay open."""
        for file in self._files:
            fcntl.fcntl(file, fcntl.F_SETFL, fcntl.fcntl(file, fcntl.F_GETFL) & ~os.O_DIRECT)
        self._note_buffered()

    def _note_buffered(self) -> None:
        self.direct = False
        message = f"{self.store.path}: direct reads (O_DIRECT) fail, reads are buffered from now on"
        warnings.warn(message, BufferedReadsWarning, stacklevel=3)

    def view(self, layer: int, expert: int) -> torch.Tensor | None:
        return None

    def check(self, layer: int, expert: int, data: memoryview) -> None:
        self.store.check(layer, expert, data)

    def close(self) -> None:
        for file in self._files:
            os.close(file)
        self._files = []


class HostSource:
    """Holds a whole store in host memory (pinned when the device is CUDA): the paper's main setting.

    Memory is taken in chunks of whole experts, so that no transfer crosses two of them.  Every expert's checksum is
    compared while it is loaded, so that no transfer has to.

    Raises:
        StoreError: the store is damaged.
        HostMemoryError: the host has too little free memory, or cannot pin it.
    """

    def __init__(self, store: ExpertStore, device: Device, chunk_bytes: int = CHUNK_BYTES) -> None:
        self.store = store
        self._device, self._chunk_bytes = device, chunk_bytes
        self._chunks: list[list[torch.Tensor]] = [[] for _ in store.layers]
        self._held_bytes = 0
        needed, free = sum(spec.experts * spec.stride_bytes for spec in store.layers), available_bytes()
        if needed > free:
            raise HostMemoryError(f"{store.path} takes {needed} bytes, this host has {free} free: {_MEMORY_FIX}")
        disk = DiskSource(store)
        try:
            for layer in range(len(store.layers)):
                self._load(layer, disk)
        except BaseException:
            self.close()
            raise
        finally:
            disk.close()

    def _load(self, layer: int, disk: DiskSource) -> None:
        spec, in_each = self.store.layers[layer], self._in_each(layer)
        for first in range(0, spec.experts, in_each):
            count = min(in_each, spec.experts - first)
            try:
                self._chunks[layer].append(self._device.staging(count * spec.stride_bytes))
            except (HostMemoryError, MemoryError, OSError) as error:
                raise HostMemoryError(
                    f"{self._held_bytes} bytes of the experts of {self.store.path} are in host memory, more cannot be "
                    f"held ({error}): {_MEMORY_FIX}"
                ) from error
            self._held_bytes += count * spec.stride_bytes
            for expert in range(first, first + count):
                held = host_bytes(self.view(layer, expert))
                disk.read(layer, expert, held)
                self.store.check(layer, expert, held)

    def _in_each(self, layer: int) -> int:
        """Experts of a chunk."""
        return max(1, self._chunk_bytes // self.store.layers[layer].stride_bytes)

    def view(self, layer: int, expert: int) -> torch.Tensor:
        stride, (chunk, place) = self.store.layers[layer].stride_bytes, divmod(expert, self._in_each(layer))
        return self._chunks[layer][chunk][place * stride : (place + 1) * stride]

    def read(self, layer: int, expert: int, out: memoryview) -> int:
        source = self.view(layer, expert).numpy()
        np.copyto(np.frombuffer(out, dtype=np.uint8)[: len(source)], source)  # releases the interpreter lock
        return len(source)

    def check(self, layer: int, expert: int, data: memoryview) -> None:
        """Nothing: compared when the store was loaded."""

    def close(self) -> None:
        for chunk in (chunk for chunks in self._chunks for chunk in chunks):
            self._device.release(chunk)
        self._chunks = [[] for _ in self._chunks]


def available_bytes() -> int:
    """Host memory that can be had without swapping, as the kernel estimates it."""
    return int(psutil.virtual_memory().available)


class Extended:
    """A source in which the entries of a second one, once there is one, follow the E experts of each layer.

    The second one holds merged slices or low-bit copies; it must not be replaced while transfers from it are under way.
    """

    def __init__(self, base: Source, experts: list[int]) -> None:
        self._base, self._experts = base, experts
        self._extension: Source | None = None

    def extend(self, extension: Source) -> None:
        """Take this one's entries from now on, in place of those of an earlier one, which is closed."""
        earlier, self._extension = self._extension, extension
        if earlier is not None:
            earlier.close()

    def _of(self, layer: int, expert: int) -> tuple[Source, int]:
        beyond = expert - self._experts[layer]
        if beyond < 0:
            return self._base, expert
        if self._extension is None:
            raise ValueError(f"layer {layer} has {self._experts[layer]} experts and no entries beyond: {expert}")
        return self._extension, beyond

    def read(self, layer: int, expert: int, out: memoryview) -> int:
        source, index = self._of(layer, expert)
        return source.read(layer, index, out)

    def view(self, layer: int, expert: int) -> torch.Tensor | None:
        source, index = self._of(layer, expert)
        return source.view(layer, index)

    def check(self, layer: int, expert: int, data: memoryview) -> None:
        source, index = self._of(layer, expert)
        source.check(layer, index, data)

    def close(self) -> None:
        self._base.close()
        if self._extension is not None:
            self._extension.close()


def open_source(store: ExpertStore, device: Device, tier: SlowTier) -> Source:
    """The slow tier over a store's files or over a copy of them in host memory.

    Raises:
        StoreError, HostMemoryError: as ``HostSource``.
    """
    return HostSource(store, device) if tier.in_memory else DiskSource(store)
