"""The slow tier: where a link takes an expert's bytes from."""

from __future__ import annotations

import os
from typing import Protocol

import torch

from specmoe.errors import StoreError
from specmoe.offload.device import Device, host_bytes
from specmoe.offload.store import ExpertStore


class Source(Protocol):
    """Where a link takes an expert's bytes from."""

    def read(self, layer: int, expert: int, out: memoryview) -> int:
        """Fill ``out`` (stride_bytes) with the expert; returns bytes read from the slow tier."""
        ...

    def view(self, layer: int, expert: int) -> torch.Tensor | None:
        """The expert as host memory (uint8 [stride_bytes]) to upload from, or None when it must be read."""
        ...

    def check(self, layer: int, expert: int, data: memoryview) -> None:
        """Compare an expert's bytes with its checksum; raises StoreError."""
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
        paths = [store.layer_file(layer) for layer in range(len(store.layers))]
        self._files: list[int] = []
        try:
            for path in paths:
                self._files.append(os.open(path, os.O_RDONLY | os.O_DIRECT))
            self.direct = True
        except OSError:
            self.close()
            self._files = [os.open(path, os.O_RDONLY) for path in paths]
            self.direct = False

    def read(self, layer: int, expert: int, out: memoryview) -> int:
        spec = self.store.layers[layer]
        file, offset = self._files[layer], expert * spec.stride_bytes
        done = 0
        while done < spec.stride_bytes:
            count = os.preadv(file, [out[done : spec.stride_bytes]], offset + done)
            if count == 0:
                raise StoreError(
                    f"{self.store.layer_file(layer)} ended inside expert {expert}: "
                    "it was truncated while open; delete the store folder and convert again"
                )
            done += count
        if not self.direct:
            os.posix_fadvise(file, offset, spec.stride_bytes, os.POSIX_FADV_DONTNEED)
        return done

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

    Raises:
        MemoryError or RuntimeError: the host cannot hold ``store.total_bytes``.
    """

    def __init__(self, store: ExpertStore, device: Device) -> None:
        self.store = store
        disk = DiskSource(store)
        self._layers: list[torch.Tensor] = []
        for layer, spec in enumerate(store.layers):
            memory = device.staging(spec.experts * spec.stride_bytes)
            for expert in range(spec.experts):
                disk.read(layer, expert, host_bytes(self._expert(memory, layer, expert)))
            self._layers.append(memory)
        disk.close()

    def _expert(self, memory: torch.Tensor, layer: int, expert: int) -> torch.Tensor:
        stride = self.store.layers[layer].stride_bytes
        return memory[expert * stride : (expert + 1) * stride]

    def view(self, layer: int, expert: int) -> torch.Tensor:
        return self._expert(self._layers[layer], layer, expert)

    def read(self, layer: int, expert: int, out: memoryview) -> int:
        source = host_bytes(self.view(layer, expert))
        out[: len(source)] = source
        return len(source)

    def check(self, layer: int, expert: int, data: memoryview) -> None:
        self.store.check(layer, expert, data)

    def close(self) -> None:
        self._layers = []


class WithMerged:
    """A source whose layers go on past their E experts with the K merged slices of a second source."""

    def __init__(self, base: Source, merged: Source, experts: list[int]) -> None:
        self._base, self._merged, self._experts = base, merged, experts

    def _of(self, layer: int, expert: int) -> tuple[Source, int]:
        beyond = expert - self._experts[layer]
        return (self._base, expert) if beyond < 0 else (self._merged, beyond)

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
        self._merged.close()
