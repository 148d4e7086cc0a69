"""Draft-driven prefetch: verification will probably need the experts that the gate picked while drafting.

Drafting itself loads nothing, so the link is idle then.  The gate's own picks are known before substitution;
the absent experts with the most picks are loaded while the draft goes on.  Related: SP-MoE, MoE-SpeQ.
"""

from __future__ import annotations

import math
import time

import torch

from specmoe.offload.arena import Key
from specmoe.offload.link import Link
from specmoe.offload.residency import Residency
from specmoe.offload.store import ExpertStore


class Prefetcher:
    """Decides what to prefetch: within a byte budget per cycle, and only what can arrive in time.

    Args:
        budget_bytes: most bytes started per cycle.
        rate_gb_s: first guess of the link's rate; replaced by what the link measures.
    """

    def __init__(
        self, store: ExpertStore, residency: Residency, link: Link, budget_bytes: int, rate_gb_s: float = 1.0
    ) -> None:
        self.skipped_late = 0
        """Experts not prefetched because they were not expected to arrive in time."""
        self._store, self._residency, self._link = store, residency, link
        self._budget_bytes, self._first_rate = budget_bytes, rate_gb_s * 1e9
        self._demand = [[0] * spec.experts for spec in store.layers]
        self._verify_s = 0.0
        self.begin(0, 0.0)

    def begin(self, steps: int, step_s: float | None) -> None:
        """Start a cycle of ``steps`` draft steps of about ``step_s`` seconds each.

        Before any step was timed (None), everything within the budget is assumed to arrive in time.
        """
        self._left_bytes = self._budget_bytes
        self._until = math.inf if step_s is None else time.perf_counter() + steps * step_s
        self._demand = [[0] * len(demand) for demand in self._demand]

    def end(self, verify_s: float) -> None:
        """End a cycle whose verification took ``verify_s`` seconds; prefetches that it did not use are given up."""
        self._residency.prefetched.end()
        self._verify_s = verify_s if not self._verify_s else 0.7 * self._verify_s + 0.3 * verify_s

    def wanted(self, layer: int, counts: torch.Tensor) -> None:
        """One draft step picked this layer's experts ``counts`` times each (long [E])."""
        demand, resident = self._demand[layer], self._residency.slots.resident(layer)
        absent = []
        for expert, count in enumerate(counts.tolist()):
            if count:
                demand[expert] += count
                if expert not in resident:
                    absent.append(expert)
        stride = self._store.layers[layer].stride_bytes
        for expert in sorted(absent, key=lambda e: -demand[e]):
            if self._left_bytes < stride:
                return
            if not self._arrives_in_time(layer, stride):
                self.skipped_late += 1
                continue
            if self._residency.prefetched.start((layer, expert), demand[expert], self._is_asked_for):
                self._left_bytes -= stride

    def _is_asked_for(self, key: Key) -> bool:
        """Whether this cycle's draft picked the expert: then it is not evicted for another."""
        return self._demand[key[0]][key[1]] > 0

    def _arrives_in_time(self, layer: int, stride: int) -> bool:
        """Whether a transfer queued now would have arrived when verification reaches the layer."""
        stats = self._link.stats
        rate = stats.moved_bytes / stats.busy_s if stats.busy_s > 0 else self._first_rate
        before = self._link.queued + (0.5 if self._link.moving else 0.0)  # assume that the one under way is half done
        arrival_s = time.perf_counter() + (before + 1) * stride / rate
        reached_s = self._until + self._verify_s * layer / len(self._store.layers)
        # Arriving half a transfer late still beats starting it on demand.
        return arrival_s - 0.5 * stride / rate <= reached_s
