"""One repetition of a cell: the raw figures of a record, as measured and as the system counted them."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Strict(BaseModel):
    """Base of every object in a record: unknown fields and infinite numbers are refused, docstrings are documented."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class Repetition(Strict):
    """One timed ``generate`` call; decode figures exclude the prefill and the first token of each row.

    Fields that a system counts itself have the names of ``baselines.contract.Counters``; null where it cannot.
    """

    prefill_s: float
    """Until the first token of every row is known."""
    decode_s: float
    """From the first token to the last."""
    prompt_tokens: int
    """Of all rows, without padding."""
    new_tokens: int
    """Of all rows: exactly what was requested."""
    decode_steps: int
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
    decode_kernel_read_bytes: int | None = None
    """Bytes the kernel read from disk for the process."""
    prefill_kernel_read_bytes: int | None = None
    drafted_tokens: int | None = None
    accepted_tokens: int | None = None
    accepted_by_position: list[int] | None = None
    """Accepted tokens at each position of the draft, first position first."""
    drafted_by_position: list[int] | None = None
    expert_requests: int | None = None
    """Experts that target passes needed, counted once per layer and pass."""
    expert_hits: int | None = None
    """Of those, the experts already on the device."""
    peak_expert_bytes: int | None = None
    """Most expert bytes on the device at one time."""
    prefetched_bytes: int | None = None
    prefetch_useful_bytes: int | None = None
    """Prefetched and used in time."""
    prefetch_late_bytes: int | None = None
    """Prefetched and used, but still in transfer when needed."""
    prefetch_wasted_bytes: int | None = None
    """Prefetched and not used."""
    phases_s: dict[str, float] = Field(default_factory=dict)
    """Decode time by phase."""
    affinity_table_bytes: int | None = None
    """Tables of expert distances of all layers, 16 bits per entry."""
    cycles: list[dict[str, Any]] = Field(default_factory=list)
    """One object per decode cycle; the fields are those of ``specmoe.stats.CycleStats``."""
    new_tokens_by_row: list[int] | None = None
    """Set where rows were asked for different numbers of tokens."""
    fidelity: float | None = None
    """Length of the common prefix with the reference output over its length, mean over rows."""
