"""The rate of decoding over the run: whether the timed part is steady, or still warming up."""

from __future__ import annotations

import statistics
from typing import Any

import pandas as pd

from reports.figures import paint
from reports.figures.intervals import timed
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
        runs = [rates(one["arrivals_s"], PARTS) for record in part["record"] for one in timed(record)]
        facts = {"kind": kind, "title": title, "system": system, "batch_size": int(part["batch_size"].iloc[0])}
        for place in zip(*filter(None, runs), strict=True):
            seconds, tok_s = (statistics.median(values) for values in zip(*place, strict=True))
            rows.append(facts | {"seconds": seconds, "tok_s": tok_s})
    return pd.DataFrame(rows, columns=_COLUMNS)


def _paint(data: pd.DataFrame, looks: Looks) -> Any:
    def draw(axes: Any, part: pd.DataFrame, marks: dict[str, Any]) -> None:
        axes.plot(part["seconds"], part["tok_s"], **marks)

    return paint.over_seconds(data, looks, "seconds of decoding", "tokens per second", draw)


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
