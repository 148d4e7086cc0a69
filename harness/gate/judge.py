"""The regression gate: whether a cell has become slower than allowed, or a deterministic metric has changed.

Speed is never compared in absolute terms across machines.  Evidence is either *paired* (both revisions run here,
in turns) or *relative* (each system's speed over the reference system's within the same round, then and now).
Rounds are added until every cell's interval lies on one side of the allowed slowdown.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from harness.gate.evidence import Evidence
from reports.results.distribution import LEVEL
from reports.results.fidelity import first_difference
from reports.results.metrics import METRICS
from reports.results.record import Record
from reports.results.stats import FEW_ROUNDS, Ratio, geometric_mean

Verdict = Literal["pass", "regression", "cannot tell"]
EXIT_CODES: dict[Verdict, int] = {"pass": 0, "regression": 1, "cannot tell": 3}
"""2 is bad input, of every command."""
EXACT = tuple(name for name, metric in METRICS.items() if metric.repeats == "exactly")


@dataclass(frozen=True)
class Finding:
    """One cell: ``slowdown`` is time now over time then (1.15: 15 % slower), with its interval; shown as a speed."""

    label: str
    batch_size: int
    slowdown: Ratio
    verdict: Verdict
    reasons: tuple[str, ...] = ()

    def __str__(self) -> str:
        reasons = f" ({'; '.join(self.reasons)})" if self.reasons else ""
        return f"{self.verdict}: {self.label}, batch {self.batch_size}: speed {self.slowdown.inverse}{reasons}"


@dataclass(frozen=True)
class Judgement:
    """All findings; ``overall`` is the geometric mean of the slowdowns."""

    findings: list[Finding]
    overall: Ratio
    evaluations: int = 0
    verdict: Verdict = field(init=False)

    def __post_init__(self) -> None:
        verdicts = {finding.verdict for finding in self.findings}
        worst: Verdict = "pass" if verdicts == {"pass"} else "cannot tell"
        object.__setattr__(self, "verdict", "regression" if "regression" in verdicts else worst)

    def __str__(self) -> str:
        mean = "" if self.overall.median is None else f", geometric mean of speed {1 / self.overall.median:.3f}×"
        evaluations = "1 evaluation" if self.evaluations == 1 else f"{self.evaluations} evaluations"
        return "\n".join([*map(str, self.findings), f"{self.verdict} (after {evaluations}){mean}"])


def gate(evidence: Iterator[Evidence], max_slowdown: float) -> Judgement:
    """Judge growing evidence; no more is requested once every cell is decided or one has regressed."""
    judgement = Judgement([], Ratio(None, None, None, 0))
    for number, known in enumerate(evidence, start=1):
        judgement = judge(known, max_slowdown, number)
        if judgement.verdict != "cannot tell":
            break
    return judgement


def judge(evidence: Evidence, max_slowdown: float, evaluations: int = 0) -> Judgement:
    """Judge every cell that finished in the baseline by the evidence so far."""
    slowdowns = evidence.slowdowns()
    cells = {r.cell_id: r for r in evidence.then if r.finished}
    findings = [_finding(evidence, record, slowdowns.get(cell_id), max_slowdown) for cell_id, record in cells.items()]
    overall = geometric_mean([[f.slowdown.median] for f in findings if f.slowdown.median is not None])
    return Judgement(findings, overall, evaluations)


def _finding(evidence: Evidence, then: Record, slowdown: Ratio | None, max_slowdown: float) -> Finding:
    lost, unclear = _exact(evidence, then.cell_id)
    is_reference = not evidence.paired and slowdown is None and then.cell.system == evidence.reference
    if is_reference:  # speeds are relative to it: only its deterministic metrics are judged
        speed: Verdict = "pass"
    else:
        speed = _speed(slowdown, max_slowdown)
        unclear += _reasons(slowdown, speed, max_slowdown)
    verdict: Verdict = "regression" if lost or speed == "regression" else "cannot tell" if unclear else speed
    ratio = slowdown or Ratio(None, None, None, 0)
    return Finding(then.label, then.cell.batch_size, ratio, verdict, tuple(lost + unclear))


def _speed(slowdown: Ratio | None, max_slowdown: float) -> Verdict:
    if slowdown is None or slowdown.low is None or slowdown.high is None or slowdown.n < FEW_ROUNDS:
        return "cannot tell"
    if slowdown.low > 1 + max_slowdown:
        return "regression"
    return "pass" if slowdown.high <= 1 + max_slowdown else "cannot tell"


def _reasons(slowdown: Ratio | None, speed: Verdict, max_slowdown: float) -> list[str]:
    if speed != "cannot tell":
        return []
    if slowdown is None or slowdown.median is None:
        return ["no round has both speeds"]
    if slowdown.n < FEW_ROUNDS:
        return [f"{slowdown.n} of at least {FEW_ROUNDS} rounds on each side"]
    return [f"the interval contains the allowed {1 / (1 + max_slowdown):.2f}×: run more rounds on an idle machine"]


def _exact(evidence: Evidence, cell_id: str) -> tuple[list[str], list[str]]:
    """Reasons for a regression, and reasons for no decision, from failures and from metrics that repeat exactly.

    Output that differs from the reference at ties alone is no regression; the counts of its cell are then not compared.
    """
    then = [r for r in evidence.then if r.cell_id == cell_id and r.finished]
    ours = [r for r in evidence.now if r.cell_id == cell_id]
    now = [r for r in ours if r.finished]
    failed = [r for r in ours if r.status in ("failed", "timeout")]
    if failed:
        return [f"{failed[-1].status}: {failed[-1].error}"], []
    if not now:
        reason = ours[-1].error if ours else "not run"
        return [], [f"no result now: {reason}"]
    unclear: list[str] = []
    lost = _wrong_output(now)
    wrong = [p for r in now if r.metrics and (p := r.metrics.distribution_p) is not None and p < LEVEL]
    if wrong:
        lost.append(f"sampled tokens are not distributed as the reference's (p = {min(wrong):.1g} below {LEVEL:g})")
    if any(r.fidelity_kind == "tie" for r in [*then, *now]):  # counts of other tokens
        return lost, unclear
    for name in EXACT:
        before = {getattr(r.metrics, name) for r in then if r.metrics and name in r.metrics.model_fields_set}
        after = {getattr(r.metrics, name) for r in now}
        if not before:  # a metric newer than the baseline
            continue
        if before == after and len(before) == 1:
            continue
        if len(before) > 1:
            unclear.append(f"{name} already varied before")
        else:
            values = ", ".join(sorted(f"{v}" for v in after))
            lost.append(f"{name} was {before.pop()}, is {values}")
    return lost, unclear


def _wrong_output(now: list[Record]) -> list[str]:
    """A reason where a lossless system gives other tokens than the reference, by more than rounding explains."""
    wrong = [r for r in now if r.fidelity_kind == "differs" and r.lossless is not False]
    if not wrong:
        return []
    first = first_difference(wrong[0].model_dump(mode="json"), "differs")
    return [f"output differs from the reference by more than rounding ({first})"]


def percentage(text: str) -> float:
    """The allowed slowdown as a share, from ``5%`` or ``0.05``.

    Raises:
        ValueError: neither, or not between 0 and 1.
    """
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError as error:
        raise ValueError(f"{text!r} is not a share: write 5% or 0.05") from error
    if not 0 <= value < 1:
        raise ValueError(f"{text!r} is out of range: write a share from 0% to 99%")
    return value
