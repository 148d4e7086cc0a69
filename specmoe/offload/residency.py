"""Expert residency: a target pass asks for a set of experts and gets their weights one at a time.

Residents take turns with experts that arrive.  When the set does not fit, work proceeds in waves: slots of experts
already used are reused for those still to come, so a budget smaller than one pass is slower but never wrong.
"""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Iterator

import torch

from specmoe.errors import BudgetError, StoreError
from specmoe.offload.arena import ExpertArena, Key
from specmoe.offload.counters import ResidencyStats
from specmoe.offload.link import Mover
from specmoe.offload.placement import IN_TRANSIT, Placement
from specmoe.offload.prefetched import Prefetched
from specmoe.offload.slots import Slots
from specmoe.offload.store import ExpertStore
from specmoe.offload.transfers import Transfer

Weights = dict[str, torch.Tensor]


def turns(residents: int, arrivals: int) -> Iterator[bool]:
    """Order in which a layer computes: True for one of its residents, False for one that arrives.

    Residents are spread evenly between arrivals, so that the link is busy throughout although few slots are free
    to receive.  The order does not depend on the clock, so a replay has the same.
    """
    residents_left = residents
    for arrivals_left in range(arrivals, 0, -1):
        while residents_left * arrivals > residents * (arrivals_left - 1):
            residents_left -= 1
            yield True
        yield False
    yield from [True] * residents_left


class Residency:
    """The only way to expert weights: ``stream`` for target passes, ``weights`` for drafts.

    ``slots`` says who is resident and pinned; ``prefetched`` starts and ends prefetches.
    """

    def __init__(self, store: ExpertStore, arena: ExpertArena, link: Mover, placement: Placement) -> None:
        self.stats = ResidencyStats()
        self.slots = Slots(len(store.layers), arena, placement)
        self.prefetched = Prefetched(store, self.slots, link, self.stats)
        self._store, self._link = store, link
        layouts = {spec.tensors: layer for layer, spec in enumerate(store.layers)}
        self._layout_of = [layouts[spec.tensors] for spec in store.layers]
        self._views: dict[tuple[int, int], Weights] = {}  # of each slot, by layout of the experts

    def ready(self, layer: int) -> list[int]:
        """Experts of the layer whose bytes are on the device, ascending."""
        return sorted(e for e in self.slots.resident(layer) if self.prefetched.has_arrived((layer, e)))

    def weights(self, layer: int, expert: int) -> Weights:
        """Tensors of a resident expert, as views into its slot."""
        self.prefetched.wait((layer, expert))
        return self._tensors((layer, expert))

    def _tensors(self, key: Key) -> Weights:
        place = (self._layout_of[key[0]], self.slots.index(key))
        views = self._views.get(place)
        if views is None:
            views = self._views[place] = self._store.tensors(key[0], self.slots.buffer(key))
        return views

    def stream(self, layer: int, experts: list[int]) -> Iterator[tuple[int, Weights]]:
        """The experts of ``groups`` one at a time; weights are valid until the next one is asked for."""
        for group in self.groups(layer, experts):
            yield from group

    def groups(self, layer: int, experts: list[int]) -> Iterator[list[tuple[int, Weights]]]:
        """Yield (expert, weights) once for each of ``experts``, as many at a time as can be computed without waiting.

        Residents take turns with those that arrive.  The weights of a group are valid until the next group is asked
        for.  How experts are grouped depends on the clock; which of them stay and which are evicted does not.

        Raises:
            StoreError: an expert could not be read.
            BudgetError: pinned experts leave no slot for the others.
        """
        hits, coming, misses = self._sort(layer, experts)
        waiting = {*hits, *(key for key, _ in coming)}  # not computed yet, so not to be evicted
        pending, residents = deque(coming), deque(hits)
        try:
            self._submit(misses, pending, waiting)
            order = deque(turns(len(hits), len(pending) + len(misses)))
            while group := self._next_group(order, residents, pending):
                yield [(key[1], self._tensors(key)) for key in group]
                for key in group:
                    if pending and pending[0][0] == key:
                        pending.popleft()
                    waiting.discard(key)
                    self.slots.release_unless_kept(key)
                    self._submit(misses, pending, waiting)
        finally:
            self._abandon(pending)
        if misses:
            raise BudgetError(
                f"layer {layer}: {len(misses)} experts found no slot, all {self.slots.total} are pinned: "
                "raise expert_budget or lower draft_experts"
            )
        for expert in () if self.slots.keeps_all else self.slots.resident(layer):
            if (layer, expert) not in self.prefetched:
                self.slots.release_unless_kept((layer, expert))  # a former draft expert that this pass did not use

    def _next_group(self, order: deque[bool], residents: deque[Key], pending: deque[tuple[Key, Transfer]]) -> list[Key]:
        """The next experts in ``order``: residents up to the next arrival, or an arrival and those there already.

        Arrivals stay in ``pending`` until they are computed.  Empty when none is left.
        """
        group: list[Key] = []
        while order and order[0] and residents:
            order.popleft()
            group.append(residents.popleft())
        if group or not order:
            return group
        if not pending:  # without a free slot nothing arrives before a resident is done
            order.popleft()
            return [residents.popleft()] if residents else []
        for key, transfer in pending:
            if not order or (order[0] and residents) or (group and not transfer.done):
                break
            self._link.wait(transfer)
            order.popleft()
            group.append(key)
        return group

    def _sort(self, layer: int, experts: list[int]) -> tuple[list[Key], list[tuple[Key, Transfer]], deque[Key]]:
        """Split what a pass asks for into residents, prefetches (those that have arrived first), and misses."""
        hits: list[Key] = []
        coming: list[tuple[Key, Transfer]] = []
        misses: deque[Key] = deque()
        for key in ((layer, e) for e in experts):
            claimed = self.prefetched.claim(key)
            if claimed is not None:
                transfer, has_arrived = claimed
                self.stats.hits += has_arrived
                coming.insert(0 if has_arrived else len(coming), (key, transfer))
            elif key in self.slots:
                hits.append(key)
            else:
                misses.append(key)
        self.stats.requests += len(experts)
        self.stats.hits += len(hits)
        return hits, coming, misses

    def _submit(self, misses: deque[Key], pending: deque[tuple[Key, Transfer]], waiting: set[Key]) -> None:
        """Start transfers while there are slots for them.

        An expert that only passes through must not evict one that the policy keeps: beyond ``IN_TRANSIT`` at
        once, a miss takes the slot of an expert valued less than itself, or waits for a slot.
        """
        while misses:
            if self.slots.free == 0:
                layer, expert = misses[0]
                is_urgent = len(pending) < IN_TRANSIT or expert in self.slots.permanent(layer)
                if not self._evict_one(waiting, math.inf if is_urgent else self.slots.value(misses[0])):
                    return
            key = misses.popleft()
            waiting.add(key)
            pending.append((key, self._link.submit(*key, self.slots.acquire(key))))

    def _evict_one(self, waiting: set[Key], value: float) -> bool:
        """Free the slot of the expert valued least, if less than ``value``; without candidates, that of a prefetch."""
        victim = self.slots.least_valued(lambda key: key in waiting or key in self.prefetched)
        if victim is None:
            return self.prefetched.evict_one()
        if self.slots.value(victim) >= value:
            return False
        self.slots.release(victim)
        return True

    def _abandon(self, pending: deque[tuple[Key, Transfer]]) -> None:
        """After an error: let transfers under way end, then free their slots."""
        for key, transfer in pending:
            with contextlib.suppress(StoreError, OSError):
                self._link.wait(transfer)
            self.slots.release(key)

    def snapshot(self) -> ResidencyStats:
        """A copy of the counters; subtract two with ``since``."""
        return self.stats.copy()

    def since(self, before: ResidencyStats) -> ResidencyStats:
        """What happened after ``before`` was taken."""
        return self.stats.since(before)

    def reset(self) -> None:
        """Free every slot and unpin all experts; merged slices stay named as permanent."""
        self.prefetched.end()
        self.slots.clear()
