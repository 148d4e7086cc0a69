"""Latencies of users at p50, p95 and p99, and the tokens of a row as they arrive."""

from __future__ import annotations

from functools import partial
from typing import Any

import pandas as pd

from reports.figures import paint
from reports.figures.intervals import INTERVAL, over_rounds, timed
from reports.figures.spec import Material, Spec
from reports.figures.style import Looks
from reports.results.latency import PERCENTS
from reports.wording.tables import system_text

_NEEDS = "finished cells of a system that reports its tokens as they are final"


def _data(metric: str, material: Material) -> pd.DataFrame:
    """A row per system, batch size and percentile, in milliseconds; no rows where nothing was reported."""
    parts = []
    for percent in PERCENTS:
        column = f"{metric}_p{percent}_s"
        part = over_rounds(material.records, column, 1e3)
        names = {column + end: f"ms{end}" for end in ("", "_low", "_high")}
        parts.append(part.rename(columns=names).assign(percent=percent))
    data = pd.concat(parts, ignore_index=True)
    known = data.groupby(["kind", "title"])["ms"].transform(lambda column: column.notna().any())
    return data[known].reset_index(drop=True)


def _paint(axis: str, may_log: bool, data: pd.DataFrame, looks: Looks) -> Any:
    figure, grid = paint.panels(len(PERCENTS), len(PERCENTS), 3.4, sharey=True)
    handles = []
    for axes, percent in zip(grid, PERCENTS, strict=True):
        handles = paint.by_batch(axes, data[data["percent"] == percent], "ms", looks)
        axes.set_title(f"p{percent}")
    paint.value_axis(grid[0], data, "ms", axis, may_log)
    paint.legend(figure, handles)
    return figure


def _alt(title: str, data: pd.DataFrame) -> str:
    texts = [f"p{p}: {paint.describe(data[data['percent'] == p], 'ms', 'ms')}" for p in PERCENTS]
    return f"{title}. {' '.join(texts)}"


def _spec(id: str, rank: int, metric: str, title: str, question: str, axis: str, caption: str) -> Spec:
    return Spec(
        id=id,
        place=("speed", rank),
        title=title,
        question=question,
        caption=f"Lower is better. {caption} {INTERVAL}",
        needs=_NEEDS,
        command="nox -s reproduce",
        data=partial(_data, metric),
        paint=partial(_paint, axis, metric != "itl"),  # half of its values may be 0
        alt=partial(_alt, title),
        of_systems=True,
    )


def _arrivals(material: Material) -> pd.DataFrame:
    """Tokens of the first row over time, from each system's last round at the smallest batch size."""
    done = material.finished
    rows: list[dict[str, Any]] = []
    smallest = done[done["batch_size"] == done["batch_size"].min()]
    for (kind, title, system), part in smallest.groupby(["kind", "title", "system"], sort=False):
        found = [one for record in part["record"] for one in timed(record)]
        for token, seconds in enumerate(found[-1]["arrivals_s"][0] if found else [], start=1):
            batch = int(part["batch_size"].iloc[0])
            row = {"kind": kind, "title": title, "system": system, "batch_size": batch}
            rows.append(row | {"seconds": seconds, "tokens": token})
    return pd.DataFrame(rows, columns=["kind", "title", "system", "batch_size", "seconds", "tokens"])


def _paint_arrivals(data: pd.DataFrame, looks: Looks) -> Any:
    def draw(axes: Any, part: pd.DataFrame, marks: dict[str, Any]) -> None:
        axes.step([0.0, *part["seconds"]], [0, *part["tokens"]], where="post", **marks)

    return paint.over_seconds(data, looks, "seconds since the request", "new tokens of one row", draw, marker="")


def _alt_arrivals(data: pd.DataFrame) -> str:
    texts = [
        f"{system_text(part.iloc[0].to_dict())} {int(part['tokens'].iloc[-1])} tokens in "
        f"{part['seconds'].iloc[-1]:.3g} s, in {part['seconds'].nunique()} bursts"
        for _, part in paint.lines(data)
    ]
    return f"New tokens of one row over time. {'; '.join(texts)}."


SPECS = (
    _spec(
        "first_token_percentiles",
        32,
        "ttft",
        "Time to first token: p50, p95, p99",
        "How long does a user wait for the first token?",
        "ms to the first token",
        "Percentiles over the rows of a batch, which a static batch prefills together.",
    ),
    _spec(
        "inter_token_percentiles",
        34,
        "itl",
        "Inter-token latency: p50, p95, p99",
        "How long does a user wait between tokens?",
        "ms between tokens",
        "Percentiles over the tokens of all rows after the first. Tokens of a burst arrive together: speculation has "
        "many gaps of 0 and few of a whole cycle.",
    ),
    _spec(
        "end_to_end_percentiles",
        36,
        "e2e",
        "End-to-end latency: p50, p95, p99",
        "How long does a user wait for the whole answer?",
        "ms to the last token",
        "Percentiles over the rows of a batch.",
    ),
    Spec(
        id="arrivals",
        place=("speed", 38),
        title="Tokens of one row as they arrive",
        question="Do tokens arrive one by one or in bursts?",
        caption="The first row of one round at the smallest batch size. A step of several tokens is a burst: drafted "
        "tokens that one verification accepted.",
        needs=_NEEDS,
        command="nox -s reproduce",
        data=_arrivals,
        paint=_paint_arrivals,
        alt=_alt_arrivals,
        of_systems=True,
    ),
)
