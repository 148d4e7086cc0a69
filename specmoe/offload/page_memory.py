"""Page-aligned host memory that is used again: fresh memory costs a page fault for every page."""

from __future__ import annotations

import threading

import torch

from specmoe.offload.device import PAGE_BYTES, allocate_pages


class PageMemory:
    """Lends buffers, and keeps those given back as long as all together stay within ``most_bytes``.

    More than that may be lent at once; then nothing is kept.  May be used from several threads.
    """

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self._free: dict[int, list[torch.Tensor]] = {}
        self._lock = threading.Lock()
        self.lent_bytes = self.kept_bytes = 0  # kept: given back, to be lent again

    @property
    def is_full(self) -> bool:
        """Whether ``most_bytes`` are lent."""
        return not self.fits(1)

    def fits(self, nbytes: int) -> bool:
        """Whether ``nbytes`` more stay within ``most_bytes``."""
        return self.lent_bytes + nbytes <= self.most_bytes

    def take(self, nbytes: int) -> torch.Tensor:
        """A page-aligned uint8 tensor [nbytes] of any content."""
        size = -(-nbytes // PAGE_BYTES) * PAGE_BYTES
        with self._lock:
            self.lent_bytes += size
            if self._free.get(size):
                self.kept_bytes -= size
                return self._free[size].pop()[:nbytes]
            self._drop()
        return allocate_pages(size)[:nbytes]

    def give(self, buffer: torch.Tensor) -> None:
        """Take back what ``take`` returned."""
        whole = buffer.as_strided((-(-len(buffer) // PAGE_BYTES) * PAGE_BYTES,), (1,))
        with self._lock:
            self.lent_bytes -= len(whole)
            self._free.setdefault(len(whole), []).append(whole)
            self.kept_bytes += len(whole)
            self._drop()

    def _drop(self) -> None:
        """Return free buffers to the system until the limit is kept."""
        for size, buffers in self._free.items():
            while buffers and self.lent_bytes + self.kept_bytes > self.most_bytes:
                buffers.pop()
                self.kept_bytes -= size
