"""Prefetched experts that no target pass has asked for yet: their transfers, and whether they paid."""

from __future__ import annotations

from collections.abc import Callable

from specmoe.errors import StoreError
from specmoe.offload.arena import Key
from specmoe.offload.counters import ResidencyStats
from specmoe.offload.link import Mover
from specmoe.offload.slots import Slots
from specmoe.offload.store import ExpertStore
from specmoe.offload.transfers import Transfer


class Prefetched:
    """Starts prefetches, hands them to the pass that asks for them, and gives up the rest."""

    def __init__(self, store: ExpertStore, slots: Slots, link: Mover, stats: ResidencyStats) -> None:
        self._store, self._slots, self._link, self._stats = store, slots, link, stats
        self._transfers: dict[Key, Transfer] = {}

    def __contains__(self, key: Key) -> bool:
        return key in self._transfers

    def start(self, key: Key, demand: float, is_spared: Callable[[Key], bool]) -> bool:
        """Start loading an expert that verification will probably ask for.

        Takes a free slot, or that of the expert the policy values least, if fewer tokens per pass are expected
        to use that one than ``demand`` and it is not spared.  False when there is neither.
        """
        if self._slots.free == 0:
            victim = self._slots.least_valued(lambda other: other in self._transfers or is_spared(other))
            if victim is None or self._slots.expected(victim) >= demand:
                return False
            self._slots.release(victim)
        self._transfers[key] = self._link.submit(*key, self._slots.acquire(key), ahead=True)
        self._stats.prefetched_bytes += self._bytes(key)
        return True

    def claim(self, key: Key) -> tuple[Transfer, bool] | None:
        """A target pass asks for the expert: its transfer and whether it has arrived; None if not prefetched."""
        transfer = self._transfers.pop(key, None)
        if transfer is None:
            return None
        if transfer.done:
            self._stats.useful_bytes += self._bytes(key)
            return transfer, True
        self._link.promote(transfer)
        self._stats.late_bytes += self._bytes(key)
        return transfer, False

    def has_arrived(self, key: Key) -> bool:
        """Whether the bytes of a resident expert are there: True for all but prefetches under way."""
        return key not in self._transfers or self._transfers[key].done

    def wait(self, key: Key) -> None:
        """Wait for the bytes of a resident expert if it is a prefetch under way."""
        if key in self._transfers:
            self._link.wait(self._transfers[key])

    def end(self) -> None:
        """After a verification: withdraw what has not begun, and count as wasted what no pass asked for."""
        begun = [key for key in list(self._transfers) if not self._withdraw(key)]
        for key in begun:
            if self._write_off(key):
                self._slots.release_unless_kept(key)

    def evict_one(self) -> bool:
        """Give up the prefetch whose layer comes last, for a demanded expert's sake; False when there is none."""
        if not self._transfers:
            return False
        key = max(self._transfers, key=lambda key: key[0])
        if not self._withdraw(key) and self._write_off(key):
            self._slots.release(key)
        return True

    def _withdraw(self, key: Key) -> bool:
        """Undo a prefetch that has not begun; False when it has."""
        if not self._link.withdraw(self._transfers[key]):
            return False
        self._stats.prefetched_bytes -= self._bytes(key)  # never moved
        self._drop(key)
        return True

    def _write_off(self, key: Key) -> bool:
        """Count a prefetch as wasted once it has ended; the expert stays resident unless its read failed."""
        self._stats.wasted_bytes += self._bytes(key)
        try:
            self._link.wait(self._transfers[key])
        except (StoreError, OSError):
            self._drop(key)  # not needed now; a pass that needs it reads it again and raises the error
            return False
        del self._transfers[key]
        return True

    def _drop(self, key: Key) -> None:
        del self._transfers[key]
        self._slots.release(key)

    def _bytes(self, key: Key) -> int:
        return self._store.layers[key[0]].stride_bytes
