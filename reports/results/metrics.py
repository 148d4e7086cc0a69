"""The metrics of a record: one entry each, from which everything else about a metric follows.

A field of ``Metrics`` with its ``Metric`` defines how the figure is computed from a repetition and combined over
repetitions, its unit, and its column in tables. The record schema, the loaded data frame, result tables, exports,
comparisons, the gate and ``docs/record.md`` are derived from it. ``docs/adding-a-metric.md`` shows an example.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from reports.results.distribution import over_repetitions
from reports.results.latency import Latencies, between_tokens, end_to_end, first_token, percentile
from reports.results.repetition import Repetition, Strict
from reports.text import number, percent, probability


@dataclass(frozen=True)
class Context:
    """What is known of a cell besides its repetitions; None where it is unknown.

    ``expert_bytes`` and ``other_bytes`` are the weights of one expert and of everything else, in the cell's dtype.
    """

    batch_size: int
    expert_bytes: int
    other_bytes: int
    latency_limit_s: float | None = None
    peak_rss_bytes: int | None = None
    link_ceiling_gb_s: float | None = None
    disk_ceiling_gb_s: float | None = None
    memory_ceiling_gb_s: float | None = None
    memory_read_ceiling_gb_s: float | None = None


@dataclass(frozen=True)
class Sample:
    """What a metric is computed from: one repetition and its cell."""

    raw: Repetition
    cell: Context

    @property
    def decoded_tokens(self) -> int:
        """New tokens without the first of each row or request, which belongs to the prefill."""
        return self.raw.new_tokens - (len(self.raw.request_arrival_s or ()) or self.cell.batch_size)


Formula = Callable[[Sample], float | None]


@dataclass(frozen=True)
class Metric:
    """How a metric is computed and shown; its name and its meaning are those of the field.

    ``combine`` reduces the values of the repetitions that have one. ``header`` is the metric's column in result
    tables (None: no column), with values divided by ``scale`` and formatted by ``text``. ``repeats`` tells whether the
    figure is independent of the machine's speed: ``exactly`` must be equal in every run of the same code (the gate
    checks it), ``nearly`` may vary a little with timing; both are compared across machines. The column of a ``rare``
    metric is left out of tables in which no row has a value.
    """

    formula: Formula
    unit: str
    header: str | None = None
    scale: float = 1.0
    text: Callable[[Any], str] = number
    combine: Callable[[Sequence[float]], float] = statistics.median
    repeats: Literal["exactly", "nearly"] | None = None
    rare: bool = False

    def of(self, samples: Sequence[Sample]) -> float | None:
        """The metric of a cell; None where no repetition has a value."""
        values = [value for sample in samples if (value := self.formula(sample)) is not None]
        return self.combine(values) if values else None

    def shown(self, value: float | None) -> str:
        """A value as a table shows it, without its unit."""
        return self.text(None if value is None else value / self.scale)


def _over(part: float | None, whole: float | None) -> float | None:
    return None if part is None or not whole else part / whole


def _median_bytes(values: Sequence[float]) -> int:
    return int(statistics.median(values))


def _tokens_per_step(sample: Sample) -> float:
    counted = sample.raw.tokens_per_step
    return counted or sample.decoded_tokens / (sample.raw.decode_steps * sample.cell.batch_size)


def _ttft_s(sample: Sample) -> float | None:
    raw = sample.raw
    return percentile(first_token(raw.arrivals_s), 50) if raw.queue_s and raw.arrivals_s else raw.prefill_s


def _goodput_per_s(sample: Sample) -> float | None:
    raw, limit_s = sample.raw, sample.cell.latency_limit_s
    if limit_s is None or raw.arrivals_s is None:
        return None
    return _over(sum(latency_s <= limit_s for latency_s in end_to_end(raw.arrivals_s)), raw.queue_s)


def _link_gb_s(sample: Sample) -> float | None:
    rate = _over(sample.raw.decode_link_bytes, sample.raw.decode_link_busy_s)
    return None if rate is None else rate * 1e-9


def _decode_gb_s(nbytes: int | None, sample: Sample) -> float | None:
    return None if nbytes is None or sample.raw.decode_s <= 0 else nbytes / sample.raw.decode_s / 1e9


def _kernel_gb_s(sample: Sample) -> float | None:
    return _decode_gb_s(sample.raw.decode_kernel_read_bytes, sample)


def _verified_bytes(sample: Sample) -> int | None:
    """Weights that target passes read: everything but experts once a pass, and each expert that a pass asked for."""
    raw, cell = sample.raw, sample.cell
    if raw.expert_requests is None:
        return None
    return raw.decode_steps * cell.other_bytes + raw.expert_requests * cell.expert_bytes


def _memory_gb_s(sample: Sample) -> float | None:
    return _decode_gb_s(_verified_bytes(sample), sample)


def _limit_s(sample: Sample) -> float | None:
    """The least time for the bytes that a repetition moved and read: at the link's or at the memory's full rate."""
    raw, cell = sample.raw, sample.cell
    verified, moved = _verified_bytes(sample), raw.decode_link_bytes
    if verified is None or moved is None or not cell.link_ceiling_gb_s or not cell.memory_read_ceiling_gb_s:
        return None
    draft_steps = sum(int(cycle.get("gamma", 0)) for cycle in raw.cycles)
    read = verified + draft_steps * cell.other_bytes
    return max(moved / cell.link_ceiling_gb_s, read / cell.memory_read_ceiling_gb_s) / 1e9


def _latency(of: Latencies, percent: float) -> Formula:
    """A percentile of the latencies of a repetition's rows; None where arrivals are unknown."""
    return lambda s: None if s.raw.arrivals_s is None else percentile(of(s.raw.arrivals_s), percent)


def _accepted_length(sample: Sample) -> float | None:
    drafted, accepted = sample.raw.drafted_by_position, sample.raw.accepted_by_position
    return _over(sum(accepted), drafted[0]) if drafted and accepted else None


def _acceptance_at(position: int) -> Formula:
    """The share of tokens drafted at a position, from 1, that were accepted; None where none was drafted there."""

    def formula(sample: Sample) -> float | None:
        drafted, accepted = sample.raw.drafted_by_position, sample.raw.accepted_by_position
        if not drafted or not accepted or len(drafted) < position:
            return None
        return _over(accepted[position - 1], drafted[position - 1])

    return formula


def _io_bound_gb_s(sample: Sample) -> float | None:
    """Bytes over time of the cycles in which the link was busy for longer than the processor."""
    moved, seconds = 0, 0.0
    for cycle in sample.raw.cycles:
        spent = sum(cycle.get(name, 0.0) for name in ("draft_s", "verify_s", "other_s"))
        if cycle.get("busy_s", 0.0) > spent - cycle.get("wait_s", 0.0):
            moved, seconds = moved + cycle["moved_bytes"], seconds + spent
    return moved / seconds / 1e9 if seconds else None


class Metrics(Strict):
    """Figures of one cell in one round, combined over its repetitions: medians unless stated otherwise."""

    prefill_tok_s: Annotated[float, Metric(lambda s: s.raw.prompt_tokens / s.raw.prefill_s, "tok/s")]
    """Prompt tokens of all rows over the time to first token."""
    decode_tok_s: Annotated[float, Metric(lambda s: s.decoded_tokens / s.raw.decode_s, "tok/s", "decode tok/s")]
    """New tokens of all rows over decode time, the first token of each row excluded."""
    ttft_s: Annotated[float, Metric(_ttft_s, "s", "TTFT s")]
    """Time to first token: until every row has one; in a queue, the median from arrival to first token."""
    tpot_s: Annotated[float, Metric(lambda s: s.raw.decode_s * s.cell.batch_size / s.decoded_tokens, "s", "TPOT s")]
    """Time per output token of a row after the first."""
    tokens_per_step: Annotated[float, Metric(_tokens_per_step, "tokens", "tokens per step T(γ)", repeats="exactly")]
    """Tokens that a row gains per target pass: 1 without speculation."""
    acceptance_rate: Annotated[
        float | None,
        Metric(
            lambda s: _over(s.raw.accepted_tokens, s.raw.drafted_tokens),
            "share",
            "acceptance",
            text=percent,
            repeats="exactly",
        ),
    ] = None
    """Accepted over drafted tokens."""
    hit_rate: Annotated[
        float | None,
        Metric(
            lambda s: _over(s.raw.expert_hits, s.raw.expert_requests),
            "share",
            "hit rate",
            text=percent,
            repeats="nearly",
        ),
    ] = None
    """Share of requested experts that were already on the device."""
    link_bytes: Annotated[int | None, Metric(lambda s: s.raw.decode_link_bytes, "bytes", combine=_median_bytes)] = None
    """Expert bytes moved over the link during decoding."""
    link_bytes_per_token: Annotated[
        float | None,
        Metric(
            lambda s: _over(s.raw.decode_link_bytes, s.decoded_tokens),
            "bytes",
            "link MB per token",
            scale=1e6,
            repeats="exactly",
        ),
    ] = None
    """``link_bytes`` per decoded token."""
    kernel_read_bytes: Annotated[
        int | None, Metric(lambda s: s.raw.decode_kernel_read_bytes, "bytes", combine=_median_bytes)
    ] = None
    """Bytes that the kernel read from disk for the process during decoding."""
    kernel_read_bytes_per_token: Annotated[
        float | None,
        Metric(
            lambda s: _over(s.raw.decode_kernel_read_bytes, s.decoded_tokens),
            "bytes",
            "kernel-read MB per token",
            scale=1e6,
        ),
    ] = None
    """``kernel_read_bytes`` per decoded token."""
    achieved_link_gb_s: Annotated[float | None, Metric(_link_gb_s, "GB/s", "link GB/s")] = None
    """Bytes moved over the link, over the time in which it was transferring."""
    peak_device_expert_bytes: Annotated[
        int | None, Metric(lambda s: s.raw.peak_expert_bytes, "bytes", "peak expert MB", scale=1e6, combine=max)
    ] = None
    """Most expert bytes on the device at one time, as counted by the system; maximum over repetitions."""
    peak_rss_bytes: Annotated[
        int | None, Metric(lambda s: s.cell.peak_rss_bytes, "bytes", "peak process GB", scale=1e9, combine=max)
    ] = None
    """Peak resident memory of the process, sampled over the whole cell."""
    fidelity: Annotated[
        float | None,
        Metric(lambda s: s.raw.fidelity, "share", "fidelity", text=percent, combine=min, repeats="exactly"),
    ] = None
    """Agreement of the output with the reference model's tokens, 1 if equal; minimum over repetitions."""
    requests_per_s: Annotated[
        float | None,
        Metric(lambda s: _over(len(s.raw.request_arrival_s or ()), s.raw.queue_s), "1/s", "requests per s", rare=True),
    ] = None
    """Requests of a queue over the time from the start to the last token."""
    queue_tok_s: Annotated[
        float | None,
        Metric(lambda s: _over(s.raw.new_tokens, s.raw.queue_s), "tok/s", "queue tok/s", rare=True),
    ] = None
    """New tokens of all requests over that time, prompts and idle time included."""
    goodput_per_s: Annotated[
        float | None,
        Metric(_goodput_per_s, "1/s", "goodput per s", rare=True),
    ] = None
    """Requests per second that ended within ``latency_limit_s`` of their arrival."""
    distribution_p: Annotated[
        float | None,
        Metric(
            lambda s: s.raw.distribution_p,
            "probability",
            "distribution p",
            text=probability,
            combine=over_repetitions,
            rare=True,
        ),
    ] = None
    """Of a sampled cell: whether its tokens are distributed as the reference model's own draws. A lossless system has a
    value below 0.0001 in one cell of 10,000; over repetitions the smallest value times their number."""
    link_of_ceiling: Annotated[
        float | None,
        Metric(lambda s: _over(_link_gb_s(s), s.cell.link_ceiling_gb_s), "share", "link of ceiling", text=percent),
    ] = None
    """``achieved_link_gb_s`` over the calibrated rate of the same medium (disk or PCIe)."""
    kernel_read_gb_s: Annotated[float | None, Metric(_kernel_gb_s, "GB/s")] = None
    """Bytes that the kernel read over decode time, waiting included."""
    disk_of_ceiling: Annotated[
        float | None,
        Metric(lambda s: _over(_kernel_gb_s(s), s.cell.disk_ceiling_gb_s), "share", "disk of ceiling", text=percent),
    ] = None
    """``kernel_read_gb_s`` over the calibrated disk rate, or over the throttle where that is lower."""
    modelled_memory_gb_s: Annotated[float | None, Metric(_memory_gb_s, "GB/s")] = None
    """Weight bytes that target passes read, over decode time: modelled, a lower bound (drafting not counted)."""
    memory_of_ceiling: Annotated[
        float | None,
        Metric(
            lambda s: _over(_memory_gb_s(s), s.cell.memory_ceiling_gb_s),
            "share",
            "memory of ceiling (modelled)",
            text=percent,
        ),
    ] = None
    """``modelled_memory_gb_s`` over the calibrated memory bandwidth."""
    achieved_over_limit: Annotated[
        float | None,
        Metric(lambda s: _over(_limit_s(s), s.raw.decode_s), "share", "achieved over limit", text=percent),
    ] = None
    """The least decode time that the machine allows, over decode time. The least time is the larger of link bytes over
    the calibrated link rate and weight bytes read over the calibrated memory read rate; experts read by drafts are not
    counted."""
    io_bound_link_of_ceiling: Annotated[
        float | None,
        Metric(lambda s: _over(_io_bound_gb_s(s), s.cell.link_ceiling_gb_s), "share", text=percent),
    ] = None
    """Link bytes over the whole time of I/O-bound cycles (the link was busy for longer than the processor), over the
    calibrated link rate."""
    ttft_p50_s: Annotated[float | None, Metric(_latency(first_token, 50), "s")] = None
    """The time to first token of a row, 50th percentile."""
    ttft_p95_s: Annotated[float | None, Metric(_latency(first_token, 95), "s")] = None
    """The time to first token of a row, 95th percentile."""
    ttft_p99_s: Annotated[float | None, Metric(_latency(first_token, 99), "s")] = None
    """The time to first token of a row, 99th percentile."""
    itl_p50_s: Annotated[float | None, Metric(_latency(between_tokens, 50), "s")] = None
    """The time between two tokens of a row, 0 within a burst, 50th percentile."""
    itl_p95_s: Annotated[float | None, Metric(_latency(between_tokens, 95), "s")] = None
    """The time between two tokens of a row, 0 within a burst, 95th percentile."""
    itl_p99_s: Annotated[float | None, Metric(_latency(between_tokens, 99), "s")] = None
    """The time between two tokens of a row, 0 within a burst, 99th percentile."""
    e2e_p50_s: Annotated[float | None, Metric(_latency(end_to_end, 50), "s")] = None
    """The time to the last token of a row, 50th percentile."""
    e2e_p95_s: Annotated[float | None, Metric(_latency(end_to_end, 95), "s")] = None
    """The time to the last token of a row, 95th percentile."""
    e2e_p99_s: Annotated[float | None, Metric(_latency(end_to_end, 99), "s")] = None
    """The time to the last token of a row, 99th percentile."""
    accepted_length: Annotated[float | None, Metric(_accepted_length, "tokens", repeats="exactly")] = None
    """Drafted tokens that the target accepts per draft of a row."""
    acceptance_at_1: Annotated[float | None, Metric(_acceptance_at(1), "share", text=percent, repeats="exactly")] = None
    """Accepted over drafted tokens at draft position 1."""
    acceptance_at_2: Annotated[float | None, Metric(_acceptance_at(2), "share", text=percent, repeats="exactly")] = None
    """Accepted over drafted tokens at draft position 2."""
    acceptance_at_4: Annotated[float | None, Metric(_acceptance_at(4), "share", text=percent, repeats="exactly")] = None
    """Accepted over drafted tokens at draft position 4."""
    acceptance_at_8: Annotated[float | None, Metric(_acceptance_at(8), "share", text=percent, repeats="exactly")] = None
    """Accepted over drafted tokens at draft position 8."""


METRICS: dict[str, Metric] = {
    name: next(entry for entry in field.metadata if isinstance(entry, Metric))
    for name, field in Metrics.model_fields.items()
}


def combine(repetitions: Sequence[Repetition], cell: Context) -> Metrics:
    """The metrics of a cell from its repetitions.

    Raises:
        ArithmeticError: a required rate divides by zero.
        ValueError: a required metric has no value.
    """
    samples = [Sample(repetition, cell) for repetition in repetitions]
    return Metrics(**{name: metric.of(samples) for name, metric in METRICS.items()})  # type: ignore[arg-type]
