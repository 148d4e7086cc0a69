"""The paper's MoE-Overlap, an oracle: tokens and bytes of on-demand, time as if its transfers were hidden.

The tokens are real.  The time is computed from the same run: compute time is wall time minus the time that compute
waited for the link.  ``behind-compute`` (the paper's definition: the next block's migration overlaps this block's
compute, over the same link) is the longer of compute time and link busy time; ``entirely`` is compute time alone.
"""

from __future__ import annotations

import time
from itertools import pairwise
from typing import Literal

from baselines.contract import SAMPLES, CapabilityCard, Generation, Request, before_first_token
from baselines.engine import DEVICES, SLOW_TIERS, TIERS, EngineOptions, OnDemandSystem
from baselines.registry import register

Hidden = Literal["behind-compute", "entirely"]


def hidden_s(wall_s: float, wait_s: float, busy_s: float, hidden: Hidden) -> float:
    """Seconds that a phase would take with its transfers hidden; at least its compute time."""
    compute_s = max(wall_s - wait_s, 0.0)
    return compute_s if hidden == "entirely" else max(compute_s, busy_s)


@register
class OverlapSystem(OnDemandSystem):
    """Tokens and bytes of on-demand, computed time."""

    card = CapabilityCard(
        name="overlap",
        title="MoE-Overlap (oracle)",
        summary="oracle: tokens and bytes of on-demand, computed time with transfers hidden behind compute",
        grain="experts",
        knows_budget=True,
        sampling=SAMPLES,
        kind="oracle",
        tiers=TIERS,
        devices=DEVICES,
        slow_tiers=SLOW_TIERS,
    )

    class Options(EngineOptions):
        hidden: Hidden = "behind-compute"

    def generate(self, request: Request) -> Generation:
        marks = [time.perf_counter()]
        generation = super().generate(before_first_token(request, lambda: marks.append(time.perf_counter())))
        marks.append(time.perf_counter())
        prefill_s, decode_s = (after - before for before, after in pairwise(marks))
        c, hidden = generation.counters, self.options.hidden
        c.oracle_prefill_s = hidden_s(prefill_s, c.prefill_link_wait_s or 0.0, c.prefill_link_busy_s or 0.0, hidden)
        c.oracle_decode_s = hidden_s(decode_s, c.decode_link_wait_s or 0.0, c.decode_link_busy_s or 0.0, hidden)
        return generation
