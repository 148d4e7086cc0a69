"""One repetition of a cell: the raw figures of a record, as measured and as the system counted them."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from baselines.counters import RecordedCounters


class Strict(BaseModel):
    """Base of every object in a record: unknown fields and infinite numbers are refused, docstrings are documented."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class Repetition(RecordedCounters, Strict):
    """One timed ``generate`` call; decode figures exclude the prefill and the first token of each row.

    Beside what the harness measures it holds what the system counted (``baselines.counters``); null where it cannot.
    """

    prefill_s: float
    """Until the first token of every row is known."""
    decode_s: float
    """From the first token to the last."""
    prompt_tokens: int
    """Of all rows, without padding."""
    new_tokens: int
    """Of all rows: exactly what was requested."""
    new_tokens_by_row: list[int] | None = None
    """Set where rows were asked for different numbers of tokens."""
    decode_steps: int
    """Target passes after the prefill."""
    decode_kernel_read_bytes: int | None = None
    """Bytes the kernel read from disk for the process."""
    prefill_kernel_read_bytes: int | None = None
    drafted_tokens: int | None = None
    accepted_tokens: int | None = None
    fidelity: float | None = None
    """Length of the common prefix with the reference output over its length, mean over rows."""
