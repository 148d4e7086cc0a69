"""Transfers of experts, and the queue of those that have not begun."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Any

import torch

from specmoe.errors import SpecMoEError


class Transfer:
    """One expert being loaded; ``wait`` returns once compute may read the slot.

    ``after`` marks the compute that may still read what the slot held before (``Device.mark``).
    """

    def __init__(self, layer: int, expert: int, slot: torch.Tensor, after: Any = None) -> None:
        self.layer, self.expert, self.slot, self.after = layer, expert, slot, after
        self._done = threading.Event()
        self._error: BaseException | None = None

    @property
    def done(self) -> bool:
        """Whether the transfer has ended, successfully or not."""
        return self._done.is_set()

    def finish(self, error: BaseException | None = None) -> None:
        self._error = error
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
        return time.perf_counter() - started


class TransferQueue:
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

    def get(self, wait: bool = True) -> Transfer | None:
        """The next transfer; None if there is none and ``wait`` is not set, or once closed and empty."""
        with self._changed:
            while wait and not (self._demanded or self._ahead or self._closed):
                self._changed.wait()
            queue = self._demanded or self._ahead
            return queue.popleft() if queue else None

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()

    def __len__(self) -> int:
        return len(self._demanded) + len(self._ahead)
