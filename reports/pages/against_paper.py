"""Tables of the paper's figures and ours, with the error and the conditions of our figure: measured, and emulated."""

from __future__ import annotations

import pandas as pd

from reports.pages import counterparts
from reports.pages.counterparts import Ours
from reports.results import paper
from reports.results.tier import is_paced
from reports.text import NONE, number
from reports.wording.tables import Table, cell

HEADERS = ["what", "paper", "ours [95 % CI]", "error", "our conditions"]
_CAPTIONS = {
    "measured": "The paper's figures and ours",
    "emulated": "The paper's figures and ours over a link paced to a stated rate (emulated, not measured on a GPU)",
}


def tables(frame: pd.DataFrame, summary: pd.DataFrame) -> list[Table]:
    """A row for each figure of the paper for which the records hold a counterpart, measured or over a paced link.

    Other emulated results, such as those of a throttled disk, are not compared: they represent no machine of the paper.
    """
    paced = set(frame.loc[frame["slow_tier"].map(is_paced).astype(bool), "workload"])
    found = []
    for kind, caption in _CAPTIONS.items():
        ours, rows = (
            part[part["kind"].isin([kind, "oracle"]) & (part["workload"].isin(paced) == (kind == "emulated"))]
            for part in (frame, summary)
        )
        shown = [_row(id, figure) for id, figure in counterparts.found(ours, rows)]
        if shown:
            found.append(Table(kind, caption, HEADERS, [[cell(text) for text in row] for row in shown]))
    return found


def _row(id: str, ours: Ours) -> tuple[str, ...]:
    theirs = paper.figure(id)
    return theirs.title, _shown(theirs.value, theirs), _interval(ours, theirs), _error(ours, theirs), ours.conditions


def _shown(value: float, theirs: paper.Figure) -> str:
    bound = {"max": "at most ", "min": "over ", "about": "about ", "exact": ""}[theirs.bound]
    return bound + _number(value, theirs)


def _number(value: float, theirs: paper.Figure) -> str:
    match theirs.unit:
        case "percent":
            return f"{value:+.1f} %" if theirs.value < 0 or theirs.id == "affinity.gain" else f"{value:.1f} %"
        case "ratio":
            return f"{value:.2f}×"
        case _:
            return number(value)


def _interval(ours: Ours, theirs: paper.Figure) -> str:
    text = _number(ours.value, theirs)
    if ours.low is None or ours.high is None:
        return text
    return f"{text} [{_number(ours.low, theirs)}, {_number(ours.high, theirs)}]"


def _error(ours: Ours, theirs: paper.Figure) -> str:
    """Relative, but in points where the figure is itself a percentage."""
    if not ours.comparable:
        return NONE
    if theirs.unit == "percent":
        return f"{ours.value - theirs.value:+.1f} points"
    return f"{100 * (ours.value / theirs.value - 1):+.0f} %"
