"""Who is on the device: hits, misses in flight, evictions, pinned experts, prefetches.

A layer asks for a set of experts and consumes them one at a time, residents in turn with those that arrive.
Work proceeds in waves when the set does not fit: slots of experts already consumed are reused
for those still to come, so a budget smaller than one pass is slower but never wrong.
"""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from specmoe.errors import BudgetError, StoreError
from specmoe.offload.arena import ExpertArena, Key
from specmoe.offload.link import Transfer
from specmoe.offload.placement import IN_TRANSIT, Placement
from specmoe.offload.store import ExpertStore

Weights = dict[str, torch.Tensor]


class Mover(Protocol):
    """What residency asks of a link; a replay without bytes answers it too."""

    def submit(self, layer: int, expert: int, slot: torch.Tensor, ahead: bool = False) -> Transfer: ...

    def promote(self, transfer: Transfer) -> None: ...

    def withdraw(self, transfer: Transfer) -> bool: ...

    def wait(self, transfer: Transfer) -> None: ...


@dataclass
class ResidencyStats:
    """Counters of target passes and prefetches.

    ``requests`` are distinct experts asked for by target passes, ``hits`` those of them that were resident.
    A prefetched expert is *useful* when a target pass found it there, *late* when the pass had to wait for
    it, *wasted* when no pass asked for it before it was evicted or a second cycle went by.
    """

    requests: int = 0
    hits: int = 0
    prefetched_bytes: int = 0
    useful_bytes: int = 0
    late_bytes: int = 0
    wasted_bytes: int = 0


def turns(residents: int, arrivals: int) -> Iterator[bool]:
    """Order in which a layer computes: True for one of its residents, False for one that arrives.

    Residents are spread evenly between arrivals, so that the link works beside all of them though few slots are
    there to receive.  The order does not depend on the clock, so a replay has the same.
    """
    residents_left = residents
    for arrivals_left in range(arrivals, 0, -1):
        while residents_left * arrivals > residents * (arrivals_left - 1):
            residents_left -= 1
            yield True
        yield False
    yield from [True] * residents_left


class Residency:
    """Arena, link and placement policy as one: ``stream`` is the only way to expert weights."""

    def __init__(self, store: ExpertStore, arena: ExpertArena, link: Mover, placement: Placement) -> None:
        self.stats = ResidencyStats()
        self.version = [0] * len(store.layers)
        """Per layer, a number that changes whenever the set of its residents does."""
        self._store, self._arena, self._link, self._placement = store, arena, link, placement
        self._pinned: list[list[int]] = [[] for _ in store.layers]
        self._permanent: list[list[int]] = [[] for _ in store.layers]
        self._resident: list[set[int]] = [set() for _ in store.layers]
        self._ahead: dict[Key, Transfer] = {}  # prefetched and not yet asked for

    def pinned(self, layer: int) -> list[int]:
        """The layer's draft experts: resident at all times, except while ``stream`` first brings them."""
        return self._pinned[layer]

    def pin(self, layer: int, experts: list[int]) -> None:
        """Replace the layer's pinned set; the next ``stream`` of the layer must name those not resident."""
        self._pinned[layer] = experts

    def permanent(self, layer: int) -> list[int]:
        """The layer's merged slices, which stay for as long as the engine lives."""
        return self._permanent[layer]

    def keep_permanently(self, layer: int, experts: list[int]) -> None:
        """Name slices that are never evicted; the next ``stream`` of the layer must name those not resident."""
        self._permanent[layer] = experts

    def resident(self, layer: int) -> set[int]:
        """Experts of the layer that have a slot, those on their way included; merged slices left out."""
        return self._resident[layer] - set(self._permanent[layer])

    def holds(self, layer: int, expert: int) -> bool:
        """Whether an expert or merged slice has a slot."""
        return expert in self._resident[layer]

    def ready(self, layer: int) -> list[int]:
        """Experts of the layer whose bytes are there, ascending."""
        here = self._resident[layer] - set(self._permanent[layer])
        return sorted(e for e in here if self._has_arrived((layer, e)))

    def _has_arrived(self, key: Key) -> bool:
        return key not in self._ahead or self._ahead[key].done

    def weights(self, layer: int, expert: int) -> Weights:
        """Tensors of a resident expert, as views into its slot."""
        transfer = self._ahead.get((layer, expert))
        if transfer is not None:
            self._link.wait(transfer)
        return self._store.tensors(layer, self._arena.buffer((layer, expert)))

    def stream(self, layer: int, experts: list[int]) -> Iterator[tuple[int, Weights]]:
        """Yield (expert, weights) once for each of ``experts``: residents take turns with those that arrive.

        A yielded expert's weights are valid until the next one is asked for.
        """
        hits, coming, misses = self._sort(layer, experts)
        waiting = {*hits, *(key for key, _ in coming)}
        pending, residents = deque(coming), deque(hits)
        try:
            self._submit(misses, pending, waiting)
            for is_resident in turns(len(hits), len(pending) + len(misses)):
                if residents and (is_resident or not pending):  # without a slot nothing arrives before one is done
                    key = residents.popleft()
                elif pending:
                    key, transfer = pending[0]
                    self._link.wait(transfer)
                    pending.popleft()
                else:
                    break
                yield key[1], self._store.tensors(layer, self._arena.buffer(key))
                self._finish(key, waiting)
                self._submit(misses, pending, waiting)
        finally:
            self._abandon(pending)
        if misses:
            raise BudgetError(
                f"layer {layer}: {len(misses)} experts found no slot, all {self._arena.slots} are pinned: "
                "raise expert_budget or lower draft_experts"
            )
        for expert in self.resident(layer):
            if (layer, expert) not in self._ahead:
                self._drop_unless_kept((layer, expert))  # a former draft expert that this pass did not touch

    def _sort(self, layer: int, experts: list[int]) -> tuple[list[Key], list[tuple[Key, Transfer]], deque[Key]]:
        """Split what a pass asks for into residents, prefetches still on their way, and misses."""
        hits: list[Key] = []
        coming: list[tuple[Key, Transfer]] = []
        misses: deque[Key] = deque()
        for key in ((layer, e) for e in experts):
            ahead = self._ahead.pop(key, None)
            if ahead is not None and ahead.done:
                self.stats.useful_bytes += self._bytes(key)
                self.stats.hits += 1
                coming.insert(0, (key, ahead))
            elif ahead is not None:
                self._link.promote(ahead)
                self.stats.late_bytes += self._bytes(key)
                coming.append((key, ahead))
            elif key in self._arena:
                hits.append(key)
            else:
                misses.append(key)
        self.stats.requests += len(experts)
        self.stats.hits += len(hits)
        return hits, coming, misses

    def _bytes(self, key: Key) -> int:
        return self._store.layers[key[0]].stride_bytes

    def _submit(self, misses: deque[Key], pending: deque[tuple[Key, Transfer]], waiting: set[Key]) -> None:
        """Start transfers while there are slots for them.

        An expert that only passes through must not push out one that the policy keeps: beyond ``IN_TRANSIT`` at
        once, a miss takes the slot of an expert valued less than itself, or waits for a slot.
        """
        while misses:
            if self._arena.free_slots == 0:
                layer, expert = misses[0]
                urgent = len(pending) < IN_TRANSIT or expert in self._permanent[layer]
                if not self._evict_one(waiting, math.inf if urgent else self._placement.priority(misses[0])):
                    return
            key = misses.popleft()
            waiting.add(key)
            pending.append((key, self._link.submit(*key, self._acquire(key))))

    def prefetch(self, key: Key, demand: float, spared: Callable[[Key], bool]) -> bool:
        """Start bringing an expert that verification will probably ask for.

        Takes a free slot, or that of the expert the policy values least, if fewer tokens per pass are expected
        to use that one than ``demand`` and it is not ``spared``.  False when there is neither.
        """
        if self._arena.free_slots == 0:
            victim = self._least_valued(spared)
            if victim is None or self._placement.expected(victim) >= demand:
                return False
            self._release(victim)
        self._ahead[key] = self._link.submit(*key, self._acquire(key), ahead=True)
        self.stats.prefetched_bytes += self._bytes(key)
        return True

    def end_prefetch(self) -> None:
        """After a verification: take back what has not begun, write off what nobody asked for."""
        begun = [(key, transfer) for key, transfer in list(self._ahead.items()) if not self._take_back(key, transfer)]
        for key, transfer in begun:
            if self._write_off(key, transfer):
                self._drop_unless_kept(key)

    def _take_back(self, key: Key, transfer: Transfer) -> bool:
        """Undo a prefetch that has not begun; False when it has."""
        if not self._link.withdraw(transfer):
            return False
        self.stats.prefetched_bytes -= self._bytes(key)  # never moved
        self._release(key)
        return True

    def _write_off(self, key: Key, transfer: Transfer) -> bool:
        """Count a prefetch as wasted once it has ended; the expert stays resident unless its read failed."""
        self.stats.wasted_bytes += self._bytes(key)
        try:
            self._link.wait(transfer)
        except (StoreError, OSError):
            self._release(key)  # nobody asked for it: whoever does will read it again, and hear of it
            return False
        del self._ahead[key]
        return True

    def _acquire(self, key: Key) -> torch.Tensor:
        slot = self._arena.acquire(key)
        assert slot is not None
        self._resident[key[0]].add(key[1])
        self.version[key[0]] += 1
        return slot

    def _release(self, key: Key) -> None:
        self._arena.release(key)
        self._ahead.pop(key, None)
        self._resident[key[0]].discard(key[1])
        self.version[key[0]] += 1

    def _finish(self, key: Key, waiting: set[Key]) -> None:
        waiting.discard(key)
        self._drop_unless_kept(key)

    def _is_fixed(self, key: Key) -> bool:
        return key[1] in self._pinned[key[0]] or key[1] in self._permanent[key[0]]

    def _drop_unless_kept(self, key: Key) -> None:
        if not self._is_fixed(key) and not self._placement.retain(key):
            self._release(key)

    def _abandon(self, pending: deque[tuple[Key, Transfer]]) -> None:
        """After an error: let transfers under way end, then free their slots."""
        for key, transfer in pending:
            with contextlib.suppress(StoreError, OSError):
                self._link.wait(transfer)
            self._release(key)

    def _evict_one(self, waiting: set[Key], value: float) -> bool:
        """Free the slot of the expert valued least, if less than ``value``; where there is none, that of a prefetch."""
        victim = self._least_valued(waiting.__contains__)
        if victim is None:
            return self._evict_prefetch()
        if self._placement.priority(victim) >= value:
            return False
        self._release(victim)
        return True

    def _least_valued(self, spared: Callable[[Key], bool]) -> Key | None:
        candidates = [
            key
            for key in self._arena.occupants()
            if key not in self._ahead and not self._is_fixed(key) and not spared(key)
        ]
        return min(candidates, key=self._placement.priority) if candidates else None

    def _evict_prefetch(self) -> bool:
        """Give up the prefetch furthest from being used: demanded experts need the slot."""
        if not self._ahead:
            return False
        key, transfer = max(self._ahead.items(), key=lambda item: item[0][0])
        if not self._take_back(key, transfer) and self._write_off(key, transfer):
            self._release(key)
        return True

    def snapshot(self) -> ResidencyStats:
        """A copy of the counters; subtract two with ``since``."""
        return replace(self.stats)

    def since(self, before: ResidencyStats) -> ResidencyStats:
        """What happened after ``before`` was taken."""
        now, then = vars(self.stats), vars(before)
        return ResidencyStats(**{name: now[name] - then[name] for name in now})

    def reset(self) -> None:
        """Empty the arena and unpin everything but the names of merged slices."""
        self.end_prefetch()
        self._arena.clear()
        for layer in range(len(self.version)):
            self._pinned[layer] = []
            self._resident[layer] = set()
            self.version[layer] += 1
