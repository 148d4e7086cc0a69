"""Residency: brings the experts a layer wants into the arena and hands them out for compute, in waves.

When the arena cannot hold all of a pass's experts at once, slots of experts already computed are reused
for those still to come, so a budget smaller than one pass is slower but never wrong.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from specmoe.arena import ExpertArena, Key
from specmoe.errors import StoreError
from specmoe.link import Link, Transfer
from specmoe.placement import Placement
from specmoe.store import ExpertStore

Weights = dict[str, torch.Tensor]


@dataclass
class ResidencyStats:
    """Distinct experts asked for by target passes, and how many were resident."""

    requests: int = 0
    hits: int = 0


class Residency:
    """Arena, link and placement policy as one: ``stream`` is the only way to expert weights."""

    def __init__(self, store: ExpertStore, arena: ExpertArena, link: Link, placement: Placement) -> None:
        self.stats = ResidencyStats()
        self._store, self._arena, self._link, self._placement = store, arena, link, placement
        self._pinned: list[list[int]] = [[] for _ in store.layers]

    def pinned(self, position: int) -> list[int]:
        """The layer's draft experts: resident at all times, except while ``stream`` first brings them."""
        return self._pinned[position]

    def pin(self, position: int, experts: list[int]) -> None:
        """Replace the layer's pinned set; the next ``stream`` of the layer must name those not resident."""
        self._pinned[position] = experts

    def resident(self, position: int) -> set[int]:
        """Experts of the layer that have a slot."""
        return {expert for layer, expert in self._arena.occupants() if layer == position}

    def weights(self, position: int, expert: int) -> Weights:
        """Tensors of a resident expert, as views into its slot."""
        return self._store.tensors(position, self._arena.buffer((position, expert)))

    def stream(self, position: int, experts: list[int]) -> Iterator[tuple[int, Weights]]:
        """Yield (expert, weights) once for each of ``experts``: residents first, then misses as they arrive.

        A yielded expert's weights are valid until the next one is asked for.
        """
        hits = [(position, e) for e in experts if (position, e) in self._arena]
        misses = deque((position, e) for e in experts if (position, e) not in self._arena)
        self.stats.requests += len(experts)
        self.stats.hits += len(hits)
        waiting = set(hits)
        pending: deque[tuple[Key, Transfer]] = deque()
        try:
            self._submit(misses, pending, waiting)
            for key in hits:
                yield key[1], self.weights(*key)
                self._finish(key, waiting)
                self._submit(misses, pending, waiting)
            while pending:
                key, transfer = pending[0]
                self._link.wait(transfer)
                pending.popleft()
                yield key[1], self.weights(*key)
                self._finish(key, waiting)
                self._submit(misses, pending, waiting)
        finally:
            self._abandon(pending)
        for expert in self.resident(position):
            self._drop_unless_kept((position, expert))  # a former draft expert that this pass did not touch

    def _submit(self, misses: deque[Key], pending: deque[tuple[Key, Transfer]], waiting: set[Key]) -> None:
        """Start as many transfers as there are slots, evicting what the policy values least."""
        while misses:
            if self._arena.free_slots == 0 and not self._evict_one(waiting):
                return
            key = misses.popleft()
            slot = self._arena.acquire(key)
            assert slot is not None
            waiting.add(key)
            pending.append((key, self._link.submit(*key, slot)))

    def _finish(self, key: Key, waiting: set[Key]) -> None:
        waiting.discard(key)
        self._drop_unless_kept(key)

    def _drop_unless_kept(self, key: Key) -> None:
        if key[1] not in self._pinned[key[0]] and not self._placement.retain(key):
            self._arena.release(key)

    def _abandon(self, pending: deque[tuple[Key, Transfer]]) -> None:
        """After an error: let transfers under way end, then free their slots."""
        for key, transfer in pending:
            with contextlib.suppress(StoreError, OSError):
                self._link.wait(transfer)
            self._arena.release(key)

    def _evict_one(self, waiting: set[Key]) -> bool:
        candidates = [k for k in self._arena.occupants() if k not in waiting and k[1] not in self._pinned[k[0]]]
        if not candidates:
            return False
        self._arena.release(min(candidates, key=self._placement.priority))
        return True

    def snapshot(self) -> ResidencyStats:
        """A copy of the counters."""
        return replace(self.stats)

    def reset(self) -> None:
        """Empty the arena and unpin everything."""
        self._arena.clear()
        self._pinned = [[] for _ in self._store.layers]
