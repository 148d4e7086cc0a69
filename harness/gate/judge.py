"""The regression gate: has a cell become slower than allowed, or its deterministic figures different?

Speed is never compared in absolute terms across machines.  Evidence is either *paired* (both revisions run here,
one after the other, again and again) or *relative* (each system's speed over the reference system's within the
same round, then and now).  Rounds are added until every cell's interval lies on one side of the allowance.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from reports.results.metrics import METRICS
from reports.results.record import Record
from reports.results.roles import REFERENCE
from reports.results.stats import FEW_ROUNDS, Ratio, bootstrap, geometric_mean, quotient

Verdict = Literal["pass", "regression", "cannot tell"]
EXIT_CODES: dict[Verdict, int] = {"pass": 0, "regression": 1, "cannot tell": 2}
EXACT = tuple(name for name, metric in METRICS.items() if metric.repeats == "exactly")
CONFIDENCE = 0.99  # an interval is looked at after every round: wider than 95 %, so that the looks add up to about that


@dataclass
class Evidence:
    """Records of before and after; ``paired`` when their rounds were run here side by side."""

    then: list[Record]
    now: list[Record]
    paired: bool
    reference: str = REFERENCE


@dataclass(frozen=True)
class Finding:
    """One cell: ``slowdown`` is time now over time then (1.15: 15 % slower), with its interval."""

    label: str
    batch_size: int
    slowdown: Ratio
    verdict: Verdict
    reasons: tuple[str, ...] = ()

    def __str__(self) -> str:
        why = f" ({'; '.join(self.reasons)})" if self.reasons else ""
        return f"{self.verdict}: {self.label}, batch {self.batch_size}: time {self.slowdown}{why}"


@dataclass(frozen=True)
class Judgement:
    """All findings; ``overall`` is the geometric mean of the slowdowns."""

    findings: list[Finding]
    overall: Ratio
    rounds: int = 0
    verdict: Verdict = field(init=False)

    def __post_init__(self) -> None:
        verdicts = {finding.verdict for finding in self.findings}
        worst: Verdict = "pass" if verdicts == {"pass"} else "cannot tell"
        object.__setattr__(self, "verdict", "regression" if "regression" in verdicts else worst)

    def __str__(self) -> str:
        mean = "" if self.overall.median is None else f", geometric mean of time {self.overall.median:.3f}×"
        return "\n".join([*map(str, self.findings), f"{self.verdict} (looks: {self.rounds}){mean}"])


def gate(evidence: Iterator[Evidence], max_slowdown: float) -> Judgement:
    """Judge growing evidence; stops asking for more as soon as every cell is decided or one has regressed."""
    judgement = Judgement([], Ratio(None, None, None, 0))
    for number, known in enumerate(evidence, start=1):
        judgement = judge(known, max_slowdown, number)
        if judgement.verdict != "cannot tell":
            break
    return judgement


def judge(evidence: Evidence, max_slowdown: float, rounds: int = 0) -> Judgement:
    """What the evidence so far says of every cell that was finished before."""
    slowdowns = _paired(evidence) if evidence.paired else _relative(evidence)
    cells = {r.cell_id: r for r in evidence.then if r.finished}
    findings = [_finding(evidence, record, slowdowns.get(cell_id), max_slowdown) for cell_id, record in cells.items()]
    overall = geometric_mean([[f.slowdown.median] for f in findings if f.slowdown.median is not None])
    return Judgement(findings, overall, rounds)


def _finding(evidence: Evidence, then: Record, slowdown: Ratio | None, max_slowdown: float) -> Finding:
    lost, unclear = _exact(evidence, then.cell_id)
    is_reference = not evidence.paired and slowdown is None and then.cell.system == evidence.reference
    if is_reference:  # the measure itself: only its deterministic figures are judged
        speed: Verdict = "pass"
    else:
        speed = _speed(slowdown, max_slowdown)
        unclear += _why_unclear(slowdown, speed, max_slowdown)
    verdict: Verdict = "regression" if lost or speed == "regression" else "cannot tell" if unclear else speed
    ratio = slowdown or Ratio(None, None, None, 0)
    return Finding(then.label, then.cell.batch_size, ratio, verdict, tuple(lost + unclear))


def _speed(slowdown: Ratio | None, max_slowdown: float) -> Verdict:
    if slowdown is None or slowdown.low is None or slowdown.high is None or slowdown.n < FEW_ROUNDS:
        return "cannot tell"
    if slowdown.low > 1 + max_slowdown:
        return "regression"
    return "pass" if slowdown.high <= 1 + max_slowdown else "cannot tell"


def _why_unclear(slowdown: Ratio | None, speed: Verdict, max_slowdown: float) -> list[str]:
    if speed != "cannot tell":
        return []
    if slowdown is None or slowdown.median is None:
        return ["no round has both figures"]
    if slowdown.n < FEW_ROUNDS:
        return [f"{slowdown.n} of at least {FEW_ROUNDS} rounds on each side"]
    return [f"the interval holds the allowed {1 + max_slowdown:.2f}×: run more rounds or quiet the machine"]


def _exact(evidence: Evidence, cell_id: str) -> tuple[list[str], list[str]]:
    """(what differs, what cannot be judged) among figures that must repeat exactly, and failures."""
    then = [r for r in evidence.then if r.cell_id == cell_id and r.finished]
    ours = [r for r in evidence.now if r.cell_id == cell_id]
    now = [r for r in ours if r.finished]
    failed = [r for r in ours if r.status in ("failed", "timeout")]
    if failed:
        return [f"{failed[-1].status}: {failed[-1].error}"], []
    if not now:
        reason = ours[-1].error if ours else "not run"
        return [], [f"no result now: {reason}"]
    lost, unclear = [], []
    for name in EXACT:
        before = {getattr(r.metrics, name) for r in then}
        after = {getattr(r.metrics, name) for r in now}
        if before == after and len(before) == 1:
            continue
        if len(before) > 1:
            unclear.append(f"{name} already varied before")
        else:
            values = ", ".join(sorted(f"{v}" for v in after))
            lost.append(f"{name} was {before.pop()}, is {values}")
    return lost, unclear


def _paired(evidence: Evidence) -> dict[str, Ratio]:
    speeds = {(record.cell_id, record.round): speed for record, speed in _speeds(evidence.now)}
    ratios: dict[str, list[float]] = {}
    for record, before in _speeds(evidence.then):
        if now := speeds.get((record.cell_id, record.round)):
            ratios.setdefault(record.cell_id, []).append(before / now)
    return {cell_id: bootstrap(values, CONFIDENCE) for cell_id, values in ratios.items()}


def _speeds(records: Sequence[Record]) -> list[tuple[Record, float]]:
    """Every finished record with its decode speed."""
    return [(record, record.metrics.decode_tok_s) for record in records if record.finished and record.metrics]


def _relative(evidence: Evidence) -> dict[str, Ratio]:
    then = relative_speeds(evidence.then, evidence.reference)
    now = relative_speeds(evidence.now, evidence.reference)
    return {cell_id: quotient(then[cell_id], now[cell_id], CONFIDENCE) for cell_id in then if cell_id in now}


def relative_speeds(records: Sequence[Record], reference: str) -> dict[str, list[float]]:
    """Per cell, its decode speed over the reference's in every round where both finished, reference cells left out."""
    finished = _speeds(records)
    references: dict[tuple[object, ...], list[tuple[Record, float]]] = {}
    for record, speed in finished:
        if record.cell.system == reference:
            references.setdefault((record.run_id, record.round, record.cell.conditions), []).append((record, speed))
    ratios: dict[str, list[float]] = {}
    for record, speed in finished:
        beside = references.get((record.run_id, record.round, record.cell.conditions), [])
        if record.cell.system == reference or not beside:
            continue
        budget = record.cell.expert_budget_bytes
        _, other = min(beside, key=lambda pair: (pair[0].cell.expert_budget_bytes != budget, pair[0].cell_id))
        ratios.setdefault(record.cell_id, []).append(speed / other)
    return ratios
