"""What a system counts itself while it generates; every counter is recorded under its own name."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class RecordedCounters(BaseModel):
    """Counters that stand in the record of a repetition; None where a system cannot count."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    decode_steps: int | None = None
    """Target passes after the prefill."""
    tokens_per_step: float | None = None
    """Tokens that a row gains per target pass."""
    prefill_link_bytes: int | None = None
    """Expert bytes moved over the link."""
    prefill_link_busy_s: float | None = None
    prefill_link_wait_s: float | None = None
    decode_link_bytes: int | None = None
    decode_link_busy_s: float | None = None
    """Time in which the link was transferring."""
    decode_link_wait_s: float | None = None
    """Time in which computation waited for the link."""
    drafted_by_position: list[int] | None = None
    """Drafted tokens at each position of the draft, first position first."""
    accepted_by_position: list[int] | None = None
    """Accepted tokens at each position of the draft, first position first."""
    expert_requests: int | None = None
    """Experts that target passes needed, counted once per layer and pass."""
    expert_hits: int | None = None
    """Of those, the experts already on the device."""
    chosen_budget_bytes: int | None = None
    """Expert budget that the system chose itself, so that the process limit is used up (``fills_limit``)."""
    peak_expert_bytes: int | None = None
    """Most expert bytes on the device at one time."""
    prefetched_bytes: int | None = None
    prefetch_useful_bytes: int | None = None
    """Prefetched and used in time."""
    prefetch_late_bytes: int | None = None
    """Prefetched and used, but still in transfer when needed."""
    prefetch_wasted_bytes: int | None = None
    """Prefetched and not used."""
    affinity_table_bytes: int | None = None
    """Tables of expert distances of all layers, 16 bits per entry."""
    kernels: str | None = None
    """Kernels that multiply, by number of rows; where that choice comes from; threads and how they wait."""
    server: dict[str, str] | None = None
    """What a server states of itself, in which form it takes prompts, and which tokens were compared."""
    draft_pool: str | None = None
    """Experts that may draft: pinned, resident, low-bit copies, or none."""
    draft_bits: int | None = None
    """Bits per weight of low-bit copies."""
    draft_copies_bytes: int | None = None
    """Expert memory that low-bit copies take."""
    expert_slots: int | None = None
    """Full experts that the rest of the expert memory holds."""
    setting_reason: str | None = None
    """Why drafts and slots share the expert memory so, with the speeds that were expected."""
    phases_s: dict[str, float] = Field(default_factory=dict)
    """Decode time by phase."""
    cycles: list[dict[str, Any]] = Field(default_factory=list)
    """One object per decode cycle; the fields are those of ``specmoe.stats.CycleStats``."""


class Counters(RecordedCounters):
    """What an adapter returns beside its tokens: the recorded counters, and the times that an oracle computes.

    Oracle times replace the clock's for cards of kind ``oracle`` and are refused from any other.
    """

    oracle_prefill_s: float | None = None
    oracle_decode_s: float | None = None
