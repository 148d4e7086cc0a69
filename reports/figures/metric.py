"""Figures of one metric over batch sizes, a line per system; at a single batch size, a row per system."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd

from reports.figures import paint, style
from reports.figures.intervals import INTERVAL, over_rounds
from reports.figures.spec import Material, Spec
from reports.figures.style import Looks
from reports.wording.tables import system_text


@dataclass(frozen=True)
class Metric:
    """A column of the records and its axis.

    Args:
        axis: label of the axis, with the unit.
        scale: factor from the column's unit to the drawn one.
        may_log: whether the axis is logarithmic where values are far apart.
        top: fixed end of the axis.
        above: systems whose values never exceed it are left out.
        line: column that is added to the data and holds a ceiling, drawn as a line.
    """

    column: str
    axis: str
    scale: float = 1.0
    may_log: bool = True
    top: float | None = None
    above: float | None = None
    line: str | None = None


def metric_spec(
    *,
    id: str,
    place: tuple[str, int],
    title: str,
    question: str,
    metric: Metric,
    caption: str = "",
    needs: str = "finished cells of any system",
    command: str = "nox -s reproduce",
    of_systems: bool = True,
) -> Spec:
    """The figure of a metric; ``caption`` follows the sentence on medians and intervals."""
    return Spec(
        id=id,
        place=place,
        title=title,
        question=question,
        caption=f"{caption} {INTERVAL}".strip(),
        needs=needs,
        command=command,
        data=partial(_data, metric),
        paint=partial(_paint, metric),
        alt=partial(_alt, metric, title),
        of_systems=of_systems,
    )


def _data(metric: Metric, material: Material) -> pd.DataFrame:
    records = material.records
    if metric.column.startswith("moved_bytes"):
        records = _counted(records)
    data = over_rounds(records, metric.column, metric.scale)
    lines = data.groupby(["kind", "title"])
    best = lines[metric.column].transform("max")
    if metric.above is not None:
        kept = best > metric.above
    else:
        kept = best.notna() | lines["status"].transform(lambda status: (status != "ok").all())
    if not data[metric.column].notna().any():
        return data.iloc[:0]
    data = data[kept].reset_index(drop=True)
    if metric.line:
        data[metric.line] = _ceiling(records)
    if metric.column.startswith("moved_bytes"):
        data["counted_by"] = data["title"].map(records.groupby("title")["counted_by"].first())
        smallest = data.groupby(["kind", "title"])[metric.column].transform("first")
        data["over_smallest_batch"] = data[metric.column] / smallest
    return data


def _counted(records: pd.DataFrame) -> pd.DataFrame:
    """``moved_bytes`` and ``moved_bytes_per_token``: by the link's count, or the kernel's for systems without one."""
    own = records.groupby(["kind", "title"])["link_bytes"].transform(lambda column: column.notna().any())
    return records.assign(
        moved_bytes=records["link_bytes"].where(own, records["kernel_read_bytes"]),
        moved_bytes_per_token=records["link_bytes_per_token"].where(own, records["kernel_read_bytes_per_token"]),
        counted_by=["link" if value else "kernel" for value in own],
    )


def _ceiling(records: pd.DataFrame) -> float:
    """Calibrated bandwidth of the link's medium in GB/s; NaN without a calibration."""
    ceilings = records["achieved_link_gb_s"] / records["link_of_ceiling"]
    return float(ceilings.median())


def _paint(metric: Metric, data: pd.DataFrame, looks: Looks) -> Any:
    if data["batch_size"].nunique() == 1:
        return _dots(metric, data, looks)
    figure, (axes,) = paint.panels(1, 1, 3.9)
    handles = paint.by_batch(axes, data, metric.column, looks)
    paint.value_axis(axes, data, metric.column, metric.axis, metric.may_log, metric.top)
    if metric.line and data[metric.line].notna().any():
        ceiling = float(data[metric.line].iloc[0])
        handles.append(axes.axhline(ceiling, color=style.INK, linewidth=1.4, linestyle=(0, (1, 1)), label="ceiling"))
        axes.set_ylim(0, 1.12 * max(ceiling, data[metric.column].max()))
    paint.legend(figure, handles)
    return figure


def _dots(metric: Metric, data: pd.DataFrame, looks: Looks) -> Any:
    """One batch size: a row for each system."""
    figure, (axes,) = paint.panels(1, 1, 0.9 + paint.ROW_IN * len(data))
    for y, row in enumerate(data.to_dict("records")):
        marks = style.line_marks(paint.look(looks, row), row["kind"]) | {"linestyle": ""}
        part = pd.DataFrame([row])
        axes.errorbar(part[metric.column], [y], xerr=paint.whiskers(part, metric.column), capsize=2.5, **marks)
    paint.title_axis(axes, [system_text(row) for row in data.to_dict("records")])
    highest = data[[metric.column, f"{metric.column}_high"]].max().max()
    ceiling = data[metric.line].iloc[0] if metric.line else float("nan")
    axes.set_xlim(0, metric.top or 1.1 * max(highest, ceiling if ceiling == ceiling else 0.0) or 1.0)
    axes.set_xlabel(f"{metric.axis}, batch {data['batch_size'].iloc[0]}")
    if ceiling == ceiling:
        axes.axvline(ceiling, color=style.INK, linewidth=1.4, linestyle=(0, (1, 1)), label="ceiling")
        paint.legend(figure, axes.get_legend_handles_labels()[0][-1:])
    return figure


def _alt(metric: Metric, title: str, data: pd.DataFrame) -> str:
    return f"{title}. {paint.describe(data, metric.column, metric.axis)}"
