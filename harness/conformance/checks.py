"""The checks of the conformance suite: each judges what the runs of a system left."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from harness.conformance.evidence import Evidence
from harness.run.job import LEFT_BEHIND
from reports.results.fidelity import first_difference
from reports.results.metrics import Metrics
from reports.results.record import Record

SLACK_BYTES = 64 << 20
FORCED_BYTES = 1 << 20
"""What the kernel may charge beyond a limit it enforces: allocations that must not fail exceed it by some pages."""

BYTES_TOLERANCE = 0.1


@dataclass(frozen=True)
class Check:
    """One verdict; ``detail`` is the observation or the reason behind it."""

    name: str
    status: Literal["passed", "failed", "skipped"]
    detail: str

    @property
    def passed(self) -> bool:
        return self.status == "passed"


class _Skip(Exception):
    """The check does not apply; the message gives the reason."""


class _Failed(Exception):
    """The system breaks the contract; the message says what was seen."""


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise _Failed(otherwise)


def judge(name: str, evidence: Evidence) -> Check:
    """The verdict of the check called ``name``; skipped if the system cannot run here."""
    first = next(iter(evidence.records.values()))
    if first.status == "not_supported":
        return Check(name, "skipped", first.error or "no reason given")
    try:
        return Check(name, "passed", CHECKS[name](evidence))
    except _Skip as reason:
        return Check(name, "skipped", str(reason))
    except _Failed as finding:
        return Check(name, "failed", str(finding))


def _finished(evidence: Evidence, which: str) -> tuple[Record, Metrics]:
    record = evidence.records[which]
    if record.status == "not_supported":
        raise _Skip(record.error or "no reason given")
    if record.status != "ok" or record.metrics is None:
        raise _Failed(f"{record.status}: {record.error}")
    return record, record.metrics


def _equal_tokens(which: str) -> Callable[[Evidence], str]:
    def check(evidence: Evidence) -> str:
        record, metrics = _finished(evidence, which)
        fidelity = metrics.fidelity
        if not evidence.card.lossless:
            raise _Skip(f"the card says lossy; fidelity {fidelity}")
        line = record.model_dump(mode="json")
        first = first_difference(line, "differs") or first_difference(line, "tie")
        where = f" ({first})" if first else ""
        reference = "transformers' greedy tokens in float32"
        _require(fidelity == 1.0, f"fidelity {fidelity} against {reference}: it must be 1.0{where}")
        tokens = record.repetitions[0].new_tokens
        return f"{tokens} tokens of {record.cell.batch_size} rows equal transformers' in float32"

    return check


def _rows_end_at_their_own_length(evidence: Evidence) -> str:
    """The worker rejects an answer with a row of wrong length; this compares the lengths with the request."""
    record, _ = _finished(evidence, "ragged")
    asked = record.cell.shape.output_lengths(record.cell.batch_size)
    for repetition in record.repetitions:
        given = repetition.new_tokens_by_row
        _require(given == asked, f"rows came back with {given} tokens, {asked} were requested")
        counted = repetition.new_tokens
        _require(counted == sum(asked), f"{counted} tokens counted, {sum(asked)} requested")
    return f"rows of {', '.join(map(str, asked))} tokens"


def _budget_is_kept(evidence: Evidence) -> str:
    """The kernel's peak of the process; for systems that know the budget also the growth with the model's size."""
    _, small = _finished(evidence, "ragged")
    record, large = _finished(evidence, "large")
    limit, budget = record.limit, record.cell.expert_budget_bytes or 0
    if limit.enforced and limit.peak_bytes is not None and limit.limit_bytes is not None:
        within = limit.peak_bytes <= limit.limit_bytes + FORCED_BYTES
        _require(within, f"peak {limit.peak_bytes} beyond the limit {limit.limit_bytes}")
    if not evidence.card.knows_budget:
        if not limit.enforced:
            raise _Skip(f"does not know the budget, and no limit was enforced: {limit.reason}")
        return (
            f"only the process limit was tested, since the card says knows_budget=False: kernel peak "
            f"{_mb(limit.peak_bytes)} of {_mb(limit.limit_bytes)}; the expert budget of {_mb(budget)} is not kept by it"
        )
    reported = large.peak_device_expert_bytes
    _require(reported is None or reported <= budget, f"reports {reported} expert bytes, the budget is {budget}")
    if small.peak_rss_bytes is None or large.peak_rss_bytes is None:
        raise _Skip("no resident sizes from the kernel")
    if evidence.large_expert_bytes < 2 * (budget + SLACK_BYTES):
        raise _Skip("the large model is too small to decide")
    grown, allowed = large.peak_rss_bytes - small.peak_rss_bytes, budget + SLACK_BYTES
    experts = _mb(evidence.large_expert_bytes)
    _require(grown <= allowed, f"with {experts} of experts the process grew by {_mb(grown)}: {_mb(allowed)} allowed")
    return f"grew by {_mb(grown)} for {experts} of experts under a budget of {_mb(budget)}"


def _bytes_agree(evidence: Evidence) -> str:
    _, metrics = _finished(evidence, "large")
    link, kernel = metrics.link_bytes, metrics.kernel_read_bytes
    if link is None:
        raise _Skip("reports no link bytes: only the kernel's are used")
    if kernel is None or not evidence.kernel_counts_reads:
        raise _Skip("the kernel counts no reads here")
    if link == 0 == kernel:
        return "no byte moved, by either count"
    seen = f"reports {_mb(link)}, the kernel read {_mb(kernel)}"
    if not kernel:
        raise _Failed(f"reports {_mb(link)}, the kernel read none: they came from the page cache, not the slow tier")
    _require(abs(link / kernel - 1) <= BYTES_TOLERANCE, seen)
    return seen


def _bad_input_is_refused(evidence: Evidence) -> str:
    _require(bool(evidence.unknown_option), "an unknown option was accepted: derive Options from SystemOptions")
    for what, answer in evidence.refusals.items():
        _require(answer.status != "ok", f"{what} was accepted")
        _require(bool(answer.error), f"{what} was refused without a reason")
        _require("died" not in answer.notes, f"{what}: {answer.error}")
    return f"refused: an unknown option, {', '.join(evidence.refusals)}"


def _nothing_is_left(evidence: Evidence) -> str:
    noted = [n for record in evidence.records.values() for n in record.notes if n.startswith(LEFT_BEHIND)]
    found = [*noted, *evidence.leftovers]
    _require(not found, "; ".join(found))
    return "no thread, process, open file or new file after close"


def _mb(nbytes: int | None) -> str:
    return "unknown" if nbytes is None else f"{nbytes / 1e6:.0f} MB"


CHECKS: dict[str, Callable[[Evidence], str]] = {
    "equal-tokens": _equal_tokens("one row"),
    "equal-tokens-ragged-batch": _equal_tokens("ragged"),
    "ragged-output-lengths": _rows_end_at_their_own_length,
    "equal-tokens-tight-memory": _equal_tokens("large"),
    "budget-kept": _budget_is_kept,
    "bytes-agree-with-kernel": _bytes_agree,
    "bad-input-refused": _bad_input_is_refused,
    "clean-shutdown": _nothing_is_left,
}

# The runs that each check needs.
NEEDS: dict[str, frozenset[str]] = {
    "equal-tokens": frozenset({"one row"}),
    "equal-tokens-ragged-batch": frozenset({"ragged"}),
    "ragged-output-lengths": frozenset({"ragged"}),
    "equal-tokens-tight-memory": frozenset({"large"}),
    "budget-kept": frozenset({"ragged", "large"}),
    "bytes-agree-with-kernel": frozenset({"large"}),
    "bad-input-refused": frozenset({"one row", "refusals"}),
    "clean-shutdown": frozenset({"one row", "ragged", "large", "refusals"}),
}
