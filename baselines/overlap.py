"""MoE-Overlap of the paper, an oracle: the same tokens and bytes as on-demand, time as if transfers were hidden.

The tokens are real.  The time is computed from the same run: compute is wall time less the time compute stood
still for the link.  ``behind-compute`` (the paper's: the next block's migration runs wholly beside this block's
compute, over the same link) takes the longer of compute and link busy time; ``entirely`` takes compute alone.
"""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import pairwise
from typing import Literal

from baselines.contract import CapabilityCard, Generation, Request, SystemOptions, register
from baselines.engine import OnDemandSystem

Hidden = Literal["behind-compute", "entirely"]


def hidden_s(wall_s: float, wait_s: float, busy_s: float, hidden: Hidden) -> float:
    """Seconds a phase would have taken with its transfers hidden; never less than its compute."""
    compute_s = max(wall_s - wait_s, 0.0)
    return compute_s if hidden == "entirely" else max(compute_s, busy_s)


@register
class OverlapSystem(OnDemandSystem):
    """On-demand for its tokens and bytes, with computed time."""

    card = CapabilityCard(
        name="overlap",
        title="MoE-Overlap (oracle)",
        summary="on-demand with its transfers hidden behind compute; real tokens, computed time",
        grain="experts",
        knows_budget=True,
        kind="oracle",
    )

    class Options(SystemOptions):
        hidden: Hidden = "behind-compute"

    def generate(self, request: Request) -> Generation:
        marks = [time.perf_counter()]

        def first_token() -> None:
            marks.append(time.perf_counter())
            request.on_prefill_done()

        generation = super().generate(replace(request, on_prefill_done=first_token))
        marks.append(time.perf_counter())
        prefill_s, decode_s = (after - before for before, after in pairwise(marks))
        c, hidden = generation.counters, self.options.hidden
        c.oracle_prefill_s = hidden_s(prefill_s, c.prefill_link_wait_s or 0.0, c.prefill_link_busy_s or 0.0, hidden)
        c.oracle_decode_s = hidden_s(decode_s, c.decode_link_wait_s or 0.0, c.decode_link_busy_s or 0.0, hidden)
        return generation
