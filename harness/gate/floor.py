"""The floor of `specmoe-bench check --floor`: the automatic setting keeps a share of its best rival's speed everywhere.

Rivals are the systems on our engine that do not draft, with the same memory.  A cell fails if its whole interval lies
below the floor, and passes if its median reaches it; between the two, more rounds are needed.
"""

from __future__ import annotations

from pathlib import Path

from harness.gate.judge import Finding, Judgement, Verdict
from reports.results.aggregate import within_rounds
from reports.results.load import load
from reports.results.record import RecordError
from reports.results.rivals import ON_OUR_ENGINE, SPEED, Place, automatic_places, fastest
from reports.results.stats import Ratio, geometric_mean

LEAST_ROUNDS = 3


def judge(results: Path, floor: float) -> Judgement:
    """Judge every cell of the automatic setting in a result file.

    Args:
        floor: least speed, as a share of the best rival's.

    Raises:
        ReportError: the file cannot be read.
        RecordError: it has no cell of the automatic setting beside a rival.
        ValueError: ``floor`` is 0.
    """
    if floor <= 0:
        raise ValueError("--floor 0 allows anything: write a share such as 0.97")
    places = [place for place in automatic_places(load([results])) if len(place.of(*ON_OUR_ENGINE))]
    if not places:
        raise RecordError(
            f"{results} has no finished cell of specmoe with controller=auto beside {' or '.join(ON_OUR_ENGINE)} "
            "of the same budget: run the preset performance-short, or name another file"
        )
    findings = [_finding(place, floor) for place in places]
    overall = geometric_mean([[f.slowdown.median] for f in findings if f.slowdown.median is not None])
    return Judgement(findings, overall, evaluations=1)


def _finding(place: Place, floor: float) -> Finding:
    rival = fastest(place.of(*ON_OUR_ENGINE))
    slowdown = within_rounds(rival, place.ours, SPEED)
    verdict, reasons = _verdict(slowdown, floor)
    return Finding(f"{place.name}, against {rival['title'].iloc[0]}", place.batch_size, slowdown, verdict, reasons)


def _verdict(slowdown: Ratio, floor: float) -> tuple[Verdict, tuple[str, ...]]:
    """``slowdown`` is our time over the rival's: at most 1 / ``floor`` is allowed."""
    if slowdown.median is None or slowdown.low is None or slowdown.n < LEAST_ROUNDS:
        return "cannot tell", (f"{slowdown.n} of at least {LEAST_ROUNDS} rounds with both",)
    if slowdown.median <= 1 / floor:
        return "pass", ()
    below = f"{1 / slowdown.median:.2f} of the rival's speed, {floor:g} is the floor"
    if slowdown.low > 1 / floor:
        return "regression", (below,)
    return "cannot tell", (f"{below}, but the interval contains it: run more rounds on an idle machine",)
