"""Simulates a replayed trace on two tracks, compute and link.

In each MoE layer the gate runs first, then the transfers of missing experts are queued and the experts are computed:

* ``serial``: experts wait for all transfers of the layer (MoE-OnDemand in the paper);
* ``pipelined``: resident experts are computed in turn with those that have arrived (this engine);
* ``next-block``: an oracle starts a layer's transfers with the compute of the MoE layer before (MoE-Overlap).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from harness.projection.cost import Cost
from harness.projection.replay import Replayed, ReplayedPass, Visit
from specmoe.offload.residency import turns

Overlap = Literal["serial", "pipelined", "next-block"]


@dataclass
class Timed:
    """Simulated times of a replayed call.

    ``wait_s`` is how long compute waits for the link, ``busy_s`` how long the link is in use, both without the prefill.
    ``row_steps`` counts rows over all verifications.
    """

    prefill_s: float = 0.0
    draft_s: float = 0.0
    verify_s: float = 0.0
    wait_s: float = 0.0
    busy_s: float = 0.0
    other_s: float = 0.0
    tokens: int = 0
    moved_bytes: int = 0
    row_steps: int = 0

    @property
    def decode_s(self) -> float:
        return self.draft_s + self.verify_s + self.other_s

    @property
    def tok_s(self) -> float:
        return self.tokens / self.decode_s

    @property
    def tokens_per_step(self) -> float:
        return self.tokens / self.row_steps

    @property
    def bytes_per_token(self) -> float:
        return self.moved_bytes / self.tokens


class Simulation:
    """Advances both tracks pass by pass, from time zero."""

    def __init__(self, cost: Cost, overlap: Overlap) -> None:
        self._cost, self._overlap = cost, overlap
        self._now = 0.0
        self._link_free = 0.0
        self._may_start = 0.0  # earliest start of the next MoE layer's transfers (oracle)
        self._ahead = 0  # experts prefetched since the last verification
        self.result = Timed()

    def run(self, replayed: Replayed) -> Timed:
        """Simulate every pass of one call."""
        result = self.result
        for one in replayed.passes:
            before, phase = (self._now, result.wait_s, result.busy_s), one.source.phase
            self._pass(one)
            took = self._now - before[0]
            if phase == "prefill":
                result.prefill_s += took
                result.wait_s, result.busy_s = before[1], before[2]
            elif phase == "draft":
                result.draft_s += took
                self._prefetch(one, before[0])
            else:
                result.verify_s += took
                self._end_cycle(one, replayed)
        return result

    def _end_cycle(self, one: ReplayedPass, replayed: Replayed) -> None:
        result, rows = self.result, len(one.source.rows)
        result.tokens += int(one.source.accepted.sum()) + rows
        result.row_steps += rows
        stride = replayed.geometry.stride_bytes
        result.moved_bytes += sum(len(v.misses) * stride[i] for i, v in enumerate(one.visits))
        result.moved_bytes += self._ahead * replayed.geometry.slot_bytes
        self._ahead = 0
        result.other_s += self._cost.hardware.cycle_s.value
        self._now += self._cost.hardware.cycle_s.value

    def _prefetch(self, one: ReplayedPass, started: float) -> None:
        """Transfers prefetched during a draft step occupy the link; nothing waits for them."""
        busy_s = one.ahead * self._cost.transfer_s()
        self._link_free = max(self._link_free, started) + busy_s
        self.result.busy_s += busy_s
        self._ahead += one.ahead

    def _pass(self, one: ReplayedPass) -> None:
        tokens, rows = one.source.tokens, int(one.source.valid.any(1).sum())
        moe_index = {layer: i for i, layer in enumerate(self._cost.model.moe_layers)}
        self._may_start = self._now
        for layer in range(len(self._cost.model.dense_params)):
            self._now += self._cost.layer_s(layer, tokens, rows)
            if layer in moe_index:
                self._experts(one.visits[moe_index[layer]])
        self._now += self._cost.head_s(tokens)

    def _experts(self, visit: Visit) -> None:
        """Transfers and compute of one MoE layer, starting now."""
        gate_done = self._now
        start = max(self._link_free, self._may_start if self._overlap == "next-block" else gate_done)
        step = self._cost.transfer_s()
        arrivals = [start + (i + 1) * step for i in range(len(visit.misses))]
        if arrivals:
            self._link_free = arrivals[-1]
            self.result.busy_s += len(arrivals) * step
        self._may_start = gate_done  # from here on the oracle knows the next layer's experts
        if self._overlap == "serial" and arrivals:
            self._wait_until(arrivals[-1])
        residents = iter(visit.hits.values())
        coming = zip(visit.misses.values(), arrivals, strict=True)
        for is_resident in turns(len(visit.hits), len(visit.misses)):
            if is_resident:
                tokens = next(residents)
            else:
                tokens, arrival = next(coming)
                self._wait_until(arrival)
            self._now += self._cost.expert_s(tokens)

    def _wait_until(self, moment: float) -> None:
        if moment > self._now:
            self.result.wait_s += moment - self._now
            self._now = moment
