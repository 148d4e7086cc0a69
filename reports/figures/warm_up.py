"""The rate of decoding over the run: whether the timed part is steady, or still warming up."""

from __future__ import annotations

import statistics
from typing import Any

import pandas as pd
from matplotlib.lines import Line2D

from reports.figures import paint, style
from reports.figures.intervals import repetitions
from reports.figures.spec import Material, Spec
from reports.figures.style import Looks
from reports.results.steadiness import rates
from reports.wording.tables import system_text

PARTS = 8
"""Equal parts of the decode time, each with a rate."""
_COLUMNS = ["kind", "title", "system", "batch_size", "seconds", "tok_s"]


def _data(material: Material) -> pd.DataFrame:
    """A row per system and part of the run at the largest batch size, the median over rounds."""
    done = material.finished
    rows: list[dict[str, Any]] = []
    largest = done[done["batch_size"] == done["batch_size"].max()]
    for (kind, title, system), part in largest.groupby(["kind", "title", "system"], sort=False):
        runs = [rates(one["arrivals_s"], PARTS) for record in part["record"] for one in _timed(record)]
        facts = {"kind": kind, "title": title, "system": system, "batch_size": int(part["batch_size"].iloc[0])}
        for place in zip(*filter(None, runs), strict=True):
            seconds, tok_s = (statistics.median(values) for values in zip(*place, strict=True))
            rows.append(facts | {"seconds": seconds, "tok_s": tok_s})
    return pd.DataFrame(rows, columns=_COLUMNS)


def _timed(record: dict[str, Any]) -> list[dict[str, Any]]:
    return [one for one in repetitions(record) if one.get("arrivals_s")]


def _paint(data: pd.DataFrame, looks: Looks) -> Any:
    figure, (axes,) = paint.panels(1, 1, 3.9)
    handles = []
    for (kind, _), part in paint.lines(data):
        marks = style.line_marks(paint.look(looks, part.iloc[0]), kind)
        axes.plot(part["seconds"], part["tok_s"], **marks)
        handles.append(Line2D([], [], label=system_text(part.iloc[0].to_dict()), **marks))
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.set_xlabel(f"seconds of decoding, batch {data['batch_size'].iloc[0]}")
    axes.set_ylabel("tokens per second")
    paint.legend(figure, handles)
    return figure


def _alt(data: pd.DataFrame) -> str:
    texts = [
        f"{system_text(part.iloc[0].to_dict())} from {part['tok_s'].iloc[0]:.3g} to {part['tok_s'].iloc[-1]:.3g} tok/s"
        for _, part in paint.lines(data)
    ]
    return f"Tokens per second over the run. {'; '.join(texts)}."


SPECS = (
    Spec(
        id="warm_up",
        place=("speed", 39),
        title="Decode speed over the run",
        question="Is the timed part steady, or still warming up?",
        caption=f"Tokens that became final in each of {PARTS} equal parts of the decode time, at the largest batch "
        "size; the median over rounds. A rising line is a cache that fills, a falling one rows that end, or longer "
        "contexts.",
        needs="finished cells of a system that reports its tokens as they are final",
        command="nox -s reproduce",
        data=_data,
        paint=_paint,
        alt=_alt,
        of_systems=True,
    ),
)
