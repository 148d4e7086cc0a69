"""An ideal prefetch for replays, which have no clock."""

from __future__ import annotations

from collections import Counter

import torch

from specmoe.offload.arena import Key
from specmoe.offload.residency import Residency


class IdealPrefetch:
    """In each draft step the link fetches the most wanted missing experts, as many as fit.

    Args:
        residency: where experts are fetched to.
        per_step: transfers that fit in one draft step; time in which nothing is wanted is lost.
        most: transfers per cycle.
    """

    def __init__(self, residency: Residency, per_step: float, most: int) -> None:
        self._residency, self._per_step, self._most = residency, per_step, most
        self._demand: Counter[Key] = Counter()
        self._credit, self._left = 0.0, most

    def wanted(self, layer: int, index: torch.Tensor) -> None:
        """Count the gate's picks ``index`` (long [n]) of a draft step."""
        for expert in index.tolist():
            self._demand[layer, expert] += 1

    def step(self) -> int:
        """End a draft step; returns how many experts were fetched during it."""
        self._credit += self._per_step
        fetched = 0
        for key, demand in sorted(self._demand.items(), key=lambda item: (-item[1], item[0])):
            if self._residency.slots.holds(*key):
                continue
            if self._credit < 1 or not self._left:
                break
            if not self._residency.prefetched.start(key, float(demand), self._demand.__contains__):
                break  # no slot for it, so none for those that are wanted less
            self._credit, self._left, fetched = self._credit - 1, self._left - 1, fetched + 1
        self._credit = min(self._credit, 1.0)
        return fetched

    def end(self) -> None:
        """End a cycle: prefetched experts that the verification did not use are released."""
        self._residency.prefetched.end()
        self._demand.clear()
        self._credit, self._left = 0.0, self._most
