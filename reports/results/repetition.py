"""One repetition of a cell: the raw figures of a record, as measured and as the system counted them."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from baselines.counters import RecordedCounters
from reports.results.fidelity import Kind


class Strict(BaseModel):
    """Base of every object in a record: unknown fields and infinite numbers are refused, docstrings are documented."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class Difference(Strict):
    """Where one row first differs from the reference; what follows is another text and is not compared."""

    row: int
    position: int
    """0 is the row's first new token."""
    token: int | None
    """The system's; null where its text ends."""
    reference_token: int | None
    margin: float | None = None
    """The reference's logit of its own token minus that of the system's; null without logits (texts)."""
    margin_is_bound: bool = False
    """The system's token is not among the reference's likeliest: the margin is at least this."""
    kind: Kind
    """``tie``: the margin is within the noise floor."""


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
    arrivals_s: list[list[float]] | None = None
    """By row: from the request until each of its tokens was final; tokens of one burst have one time. Null where the
    system does not report its tokens."""
    drafted_tokens: int | None = None
    accepted_tokens: int | None = None
    fidelity: float | None = None
    """Length of the common prefix with the reference output over its length, mean over rows."""
    fidelity_kind: Kind | None = None
    """``equal`` tokens, or the worst of ``differences``; null in records from before it was recorded."""
    differences: list[Difference] = Field(default_factory=list)
    """One for each row that differs."""
    noise_floor: float | None = None
    """Set with differences: the largest change of the margin between the reference's two best tokens when it computes a
    row alone, all tokens in one pass, instead of in the batch, token by token."""
    queue_s: float | None = None
    """Of a queue: from the start to the last token. ``prefill_s`` and ``decode_s`` are then the time spent on prompts
    and on decoding, without idle time."""
    request_arrival_s: list[float] | None = None
    """When each request arrived, in seconds after the start; ``arrivals_s`` of its tokens count from then."""
    distribution_p: float | None = None
    """Of a sampled cell: the probability of scores that differ as much from those of the reference's own draws, if the
    system draws as the reference does (``reports.results.distribution``)."""
    distribution_tokens: int | None = None
    """Scored tokens of the system."""
    distribution_reference_tokens: int | None = None
    """Scored tokens of the reference."""
    distribution_detects: float | None = None
    """The least difference of the two distribution functions that so many tokens show, at the level of 0.0001 and with
    a probability of 0.9."""
