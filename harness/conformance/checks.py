"""The verdicts of the conformance suite: what its runs of a system left, judged check by check."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from baselines import contract
from harness.run.job import LEFT_BEHIND, Answer
from reports.results.record import Record

SLACK_BYTES = 64 << 20
FORCED_BYTES = 1 << 20
"""What the kernel may charge beyond a limit it enforces: allocations that must not fail pass it by some pages."""

BYTES_TOLERANCE = 0.1


@dataclass(frozen=True)
class Check:
    """One verdict; ``detail`` says what was seen."""

    name: str
    status: Literal["passed", "failed", "skipped"]
    detail: str

    @property
    def passed(self) -> bool:
        return self.status == "passed"


@dataclass
class Evidence:
    """What the runs of one system left to judge."""

    card: contract.CapabilityCard
    records: dict[str, Record] = field(default_factory=dict)
    refusals: dict[str, Answer] = field(default_factory=dict)
    unknown_option: str | None = None
    leftovers: list[str] = field(default_factory=list)
    large_expert_bytes: int = 0
    kernel_counts_reads: bool = False


class _Skip(Exception):
    """The check does not apply; the message says why."""


def judge(name: str, evidence: Evidence) -> Check:
    """The verdict of the check called ``name``; skipped where the system says that it cannot run here."""
    first = next(iter(evidence.records.values()))
    if first.status == "not_supported":
        return Check(name, "skipped", first.error or "no reason given")
    try:
        return Check(name, "passed", CHECKS[name](evidence))
    except _Skip as reason:
        return Check(name, "skipped", str(reason))
    except AssertionError as error:
        return Check(name, "failed", str(error))


def _finished(evidence: Evidence, which: str) -> Record:
    record = evidence.records[which]
    if record.status == "not_supported":
        raise _Skip(record.error or "no reason given")
    assert record.status == "ok", f"{record.status}: {record.error}"
    assert record.metrics is not None
    return record


def _equal_tokens(which: str) -> Callable[[Evidence], str]:
    def check(evidence: Evidence) -> str:
        record = _finished(evidence, which)
        assert record.metrics is not None
        fidelity = record.metrics.fidelity
        if not evidence.card.lossless:
            raise _Skip(f"the card says lossy; fidelity {fidelity}")
        assert fidelity == 1.0, f"fidelity {fidelity} against transformers' greedy tokens in float32: 1.0 is asked"
        tokens = record.repetitions[0].new_tokens
        return f"{tokens} tokens of {record.cell.batch_size} rows equal transformers' in float32"

    return check


def _rows_end_at_their_own_length(evidence: Evidence) -> str:
    """The worker refuses an answer with a row that is too long or too short; here is what was asked for."""
    record = _finished(evidence, "ragged")
    asked = record.cell.shape.output_lengths(record.cell.batch_size)
    for repetition in record.repetitions:
        given = repetition.new_tokens_by_row
        assert given == asked, f"rows came back with {given} tokens, {asked} were asked for"
        assert repetition.new_tokens == sum(asked), f"{repetition.new_tokens} tokens counted, {sum(asked)} asked for"
    return f"rows of {', '.join(map(str, asked))} tokens"


def _budget_is_kept(evidence: Evidence) -> str:
    """The kernel's peak of the process, and for systems that know the budget the growth with the model's size."""
    small, large = _finished(evidence, "ragged"), _finished(evidence, "large")
    assert small.metrics is not None
    assert large.metrics is not None
    limit, budget = large.limit, large.cell.expert_budget_bytes or 0
    if limit.enforced and limit.peak_bytes is not None and limit.limit_bytes is not None:
        allowed = limit.limit_bytes + FORCED_BYTES
        assert limit.peak_bytes <= allowed, f"peak {limit.peak_bytes} beyond the limit {limit.limit_bytes}"
    reported = large.metrics.peak_device_expert_bytes
    if reported is not None and evidence.card.knows_budget:
        assert reported <= budget, f"reports {reported} expert bytes, the budget is {budget}"
    if not evidence.card.knows_budget:
        if not limit.enforced:
            raise _Skip(f"knows no budget, and no limit was enforced: {limit.why_not}")
        return f"kernel peak {_mb(limit.peak_bytes)} within the process limit of {_mb(limit.limit_bytes)}"
    peaks = small.metrics.peak_rss_bytes, large.metrics.peak_rss_bytes
    if peaks[0] is None or peaks[1] is None or evidence.large_expert_bytes < 2 * (budget + SLACK_BYTES):
        raise _Skip("no resident sizes from the kernel, or a model too small to tell")
    grown = peaks[1] - peaks[0]
    allowed = budget + SLACK_BYTES
    assert grown <= allowed, (
        f"with {_mb(evidence.large_expert_bytes)} of experts the process grew by {_mb(grown)}: {_mb(allowed)} allowed"
    )
    return f"grew by {_mb(grown)} for {_mb(evidence.large_expert_bytes)} of experts under a budget of {_mb(budget)}"


def _bytes_agree(evidence: Evidence) -> str:
    record = _finished(evidence, "large")
    assert record.metrics is not None
    link, kernel = record.metrics.link_bytes, record.metrics.kernel_read_bytes
    if link is None:
        raise _Skip("reports no link bytes: the kernel's alone are used")
    if kernel is None or not evidence.kernel_counts_reads:
        raise _Skip("the kernel counts no reads here")
    if link == 0 == kernel:
        return "no byte moved, by either count"
    assert kernel, f"reports {_mb(link)}, the kernel read none: they came from the page cache, which is no slow tier"
    assert abs(link / kernel - 1) <= BYTES_TOLERANCE, f"reports {_mb(link)}, the kernel read {_mb(kernel)}"
    return f"reports {_mb(link)}, the kernel read {_mb(kernel)}"


def _bad_input_is_refused(evidence: Evidence) -> str:
    assert evidence.unknown_option, "an unknown option was accepted: derive Options from SystemOptions"
    for what, answer in evidence.refusals.items():
        assert answer.status != "ok", f"{what} was accepted"
        assert answer.error, f"{what} was refused without a reason"
        assert "died" not in answer.notes, f"{what}: {answer.error}"
    return f"refused: an unknown option, {', '.join(evidence.refusals)}"


def _nothing_is_left(evidence: Evidence) -> str:
    noted = [n for record in evidence.records.values() for n in record.notes if n.startswith(LEFT_BEHIND)]
    found = [*noted, *evidence.leftovers]
    assert not found, "; ".join(found)
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

# The runs that each check looks at.
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
