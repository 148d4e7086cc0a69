"""Acceptance by position in the draft."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.lines import Line2D
from scipy import stats

from reports.figures import paint, style
from reports.figures.spec import Material, Spec
from reports.figures.style import Looks
from reports.results.acceptance import by_position
from reports.wording.tables import system_text

_BY = ["kind", "title", "system", "batch_size"]


def _data(material: Material) -> pd.DataFrame:
    """Acceptance with its Wilson interval over one round's drafts: greedy rounds repeat the same tokens."""
    data = by_position(material.records)
    rounds = material.finished.groupby(_BY).size()
    bounds = []
    for row in data.to_dict("records"):
        repeats = int(rounds[tuple(row[name] for name in _BY)])
        tried = max(1, round(row["drafted"] / repeats))
        kept = min(tried, round(row["accepted"] / repeats))
        bounds.append(stats.binomtest(kept, tried).proportion_ci(0.95, "wilson"))
    value = "accepted_percent"
    data[value] = 100 * data["accepted_share"]
    data[f"{value}_low"] = [min(100 * b.low, v) for b, v in zip(bounds, data[value], strict=True)]
    data[f"{value}_high"] = [max(100 * b.high, v) for b, v in zip(bounds, data[value], strict=True)]
    return data.drop(columns="accepted_share")


def _paint(data: pd.DataFrame, looks: Looks) -> Any:
    batches = sorted(data["batch_size"].unique())
    figure, grid = paint.panels(len(batches), 3, 2.7 if len(batches) > 1 else 3.4, sharex=True, sharey=True)
    handles = []
    for axes, batch in zip(grid, batches, strict=True):
        for (kind, _), part in paint.lines(data[data["batch_size"] == batch]):
            marks = style.line_marks(paint.look(looks, part.iloc[0]), kind) | {"markersize": 5}
            value = "accepted_percent"
            axes.errorbar(
                part["position"], part[value], yerr=paint.whiskers(part, value), capsize=2, elinewidth=1, **marks
            )
            handles.append(Line2D([], [], label=system_text(part.iloc[0].to_dict()), **marks))
        axes.set_title(f"batch {batch}")
        axes.set_ylim(0, 104)
        axes.set_xticks(_ticks(int(data["position"].max())))
        axes.set_xlabel("draft position")
    for axes in grid[::3]:
        axes.set_ylabel("drafted tokens accepted, %")
    paint.legend(figure, handles)
    return figure


def _ticks(last: int) -> list[int]:
    step = 1 if last <= 6 else 2 if last <= 11 else 5 if last <= 20 else 16
    return [1, *[n for n in range(step, last + 1, step) if n > 1]]


def _alt(data: pd.DataFrame) -> str:
    ends = [
        f"{system_text(part.iloc[0].to_dict())} at batch {batch}: {part['accepted_percent'].iloc[0]:.0f} % at "
        f"position 1, {part['accepted_percent'].iloc[-1]:.0f} % at position {part['position'].iloc[-1]}"
        for (_, _, batch), part in data.groupby(["kind", "title", "batch_size"], sort=False)
    ]
    return f"Share of drafted tokens kept, by position. {'; '.join(ends)}."


SPECS = (
    Spec(
        id="acceptance_by_position",
        place=("drafting", 30),
        title="Acceptance by position in the draft",
        question="How does acceptance fall along the draft?",
        caption="Share of drafted tokens that the target accepted, over all rounds; position 1 is drafted first. "
        "Whiskers: 95 % Wilson interval over the drafts of one round, since greedy rounds repeat the same tokens.",
        needs="finished cells of a system that drafts",
        command="nox -s reproduce",
        data=_data,
        paint=_paint,
        alt=_alt,
    ),
)
