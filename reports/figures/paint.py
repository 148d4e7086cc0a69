"""Painting shared by figures: panels, axes of batch sizes, marks of systems, legends."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, NullFormatter

from reports.figures import style
from reports.figures.style import Looks, Style
from reports.text import number
from reports.wording.tables import system_text

LOG_FROM = 8.0  # largest over smallest value from which an axis is logarithmic
DODGE = 0.05  # categories' share between neighbouring systems
ROW_IN = 0.3  # height of a horizontal bar or dot


def lines(data: pd.DataFrame) -> list[tuple[tuple[str, str], pd.DataFrame]]:
    """Rows by (kind, title), in order of appearance."""
    return list(data.groupby(["kind", "title"], sort=False))


def look(looks: Looks, row: Any) -> Style:
    """A row's style; a title without one falls back to its system's own."""
    return looks.get(row["title"]) or Style(*style.look_of(style.key_of(row["title"], row["system"])))


def batch_axis(axes: Any, batches: Sequence[int]) -> None:
    """Batch sizes as evenly spaced categories."""
    axes.set_xticks(range(len(batches)), [str(batch) for batch in batches])
    axes.set_xlim(-0.5, len(batches) - 0.5)
    axes.grid(axis="x", visible=False)
    axes.set_xlabel("batch size (sequences)")


def dodge(position: int, of: int) -> float:
    """Sideways shift of the ``position``-th of several marks at one place."""
    return DODGE * (position - (of - 1) / 2) * min(1.0, 10 / max(1, of))


def whiskers(part: pd.DataFrame, value: str) -> list[Any]:
    """Distances of the interval's ends from the value; none where there is no interval."""
    middle = part[value].to_numpy(dtype=float)
    low = (middle - part[f"{value}_low"].to_numpy(dtype=float)).clip(min=0)
    high = (part[f"{value}_high"].to_numpy(dtype=float) - middle).clip(min=0)
    return [low, high]


def by_batch(axes: Any, data: pd.DataFrame, value: str, looks: Looks) -> list[Line2D]:
    """Every system's values over batch sizes with whiskers; crosses where a cell gave no result."""
    batches = sorted(data["batch_size"].unique())
    handles = []
    found = lines(data)
    for i, ((kind, _), part) in enumerate(found):
        first = part.iloc[0]
        marks = style.line_marks(look(looks, first), kind)
        places = [batches.index(batch) + dodge(i, len(found)) for batch in part["batch_size"]]
        axes.errorbar(places, part[value], yerr=whiskers(part, value), capsize=2.5, elinewidth=1.2, **marks)
        lost = [place for place, status in zip(places, part["status"], strict=True) if status != "ok"]
        _crosses(axes, lost, marks["color"])
        handles.append(Line2D([], [], label=system_text(first.to_dict()), **marks))
    if (data["status"] != "ok").any():
        handles.append(Line2D([], [], linestyle="", marker="x", color="#444444", markeredgewidth=2, label="no result"))
    batch_axis(axes, batches)
    return handles


def over_seconds(
    data: pd.DataFrame,
    looks: Looks,
    x: str,
    y: str,
    draw: Callable[[Any, pd.DataFrame, dict[str, Any]], Any],
    **marks: Any,
) -> Any:
    """A figure over the seconds of a run, from 0 on: ``draw`` puts each system's rows on the axes with its marks.

    ``x`` and ``y`` are the axes' labels; ``marks`` replace those of every system.
    """
    figure, (axes,) = panels(1, 1, 3.9)
    handles = []
    for (kind, _), part in lines(data):
        own = style.line_marks(look(looks, part.iloc[0]), kind) | marks
        draw(axes, part, own)
        handles.append(Line2D([], [], label=system_text(part.iloc[0].to_dict()), **own))
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.set_xlabel(f"{x}, batch {data['batch_size'].iloc[0]}")
    axes.set_ylabel(y)
    legend(figure, handles)
    return figure


def _crosses(axes: Any, places: list[float], color: str) -> None:
    transform = axes.get_xaxis_transform()
    marks = {"color": color, "markersize": 8, "markeredgewidth": 2.2, "clip_on": False, "transform": transform}
    if places:  # an empty line without clipping would spoil the layout
        axes.plot(places, [0.02] * len(places), "x", **marks)


def value_axis(
    axes: Any, data: pd.DataFrame, value: str, label: str, may_log: bool = True, top: float | None = None
) -> None:
    """The y axis from 0, or logarithmic where values are far apart."""
    values = data[value][data[value] > 0]
    if may_log and len(values) and values.max() > LOG_FROM * values.min():
        axes.set_yscale("log")
        plain_log(axes.yaxis, values.max() / values.min())
        axes.set_ylabel(f"{label} (log scale)")
        return
    highest = data[[value, f"{value}_high"]].max().max()
    axes.set_ylim(0, top or (1.12 * highest if highest and math.isfinite(highest) else 1.0))
    axes.set_ylabel(label)


def plain_log(axis: Any, span: float) -> None:
    """Ticks of a logarithmic axis as plain numbers; 2 and 5 between where there is room."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(FuncFormatter(_one_two_five) if span < 40 else NullFormatter())


def _one_two_five(value: float, _: int | None = None) -> str:
    return f"{value:g}" if f"{value:e}"[0] in "25" else ""


def plain_ticks(axes: Any, which: str, ticks: Sequence[float]) -> None:
    """A logarithmic axis (``which`` is x or y) with the given ticks as plain numbers."""
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_ticks(ticks)
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def panels(count: int, across: int, height_in: float, **shared: Any) -> tuple[Any, list[Any]]:
    """A figure of page width with ``count`` panels, ``across`` in a row; returns (figure, axes)."""
    across = min(across, count)
    down = -(-count // across)
    size = (style.PAGE_WIDTH_IN, height_in * down)
    figure, grid = plt.subplots(down, across, figsize=size, squeeze=False, layout="constrained", **shared)
    for axes in list(grid.flat)[count:]:
        axes.set_visible(False)
    return figure, list(grid.flat)[:count]


def legend(figure: Any, handles: Sequence[Any]) -> None:
    """All handles once, below the panels, which keep their height."""
    unique = list({str(handle.get_label()): handle for handle in handles}.values())
    if not unique:
        return
    longest = max(len(str(handle.get_label())) for handle in unique)
    columns = min(len(unique), 1 if longest > 44 else 2 if longest > 22 else 3)
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + 0.22 * -(-len(unique) // columns))
    figure.legend(handles=unique, loc="outside lower center", ncols=columns, columnspacing=1.4)


def part_handles(parts: dict[str, tuple[str, str]]) -> list[Patch]:
    """Legend of the parts of stacked bars."""
    return [
        Patch(facecolor=color, hatch=hatch, edgecolor=style.INK, linewidth=0.5, label=name)
        for name, (color, hatch) in parts.items()
    ]


def stacked(axes: Any, rows: list[str], data: pd.DataFrame, part: str, value: str, parts: Any) -> None:
    """Horizontal stacked bars: a bar for each of ``rows`` (column ``title``), a segment for each part."""
    for y, title in enumerate(rows):
        left = 0.0
        ours = data[data["title"] == title]
        kind = str(ours["kind"].iloc[0])
        for name, (color, hatch) in parts.items():
            width = float(ours[ours[part] == name][value].sum())
            marks = {"facecolor": color, "hatch": hatch + style.KINDS[kind].hatch}
            axes.barh(y, width, left=left, height=0.66, edgecolor=style.INK, linewidth=0.5, **marks)
            left += width
    title_axis(axes, rows)


def title_axis(axes: Any, rows: Sequence[str], width: int = 22) -> None:
    """Row labels down the y axis, the first on top; longer ones than ``width`` on two lines."""
    axes.set_yticks(range(len(rows)), [wrapped(row, width) for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)


def wrapped(text: str, width: int = 22) -> str:
    """A label on at most two lines."""
    if len(text) <= width or " " not in text:
        return text
    middle = min((abs(i - len(text) / 2), i) for i, c in enumerate(text) if c == " ")[1]
    return f"{text[:middle]}\n{text[middle + 1 :]}"


def describe(data: pd.DataFrame, value: str, unit: str, over: str = "batch_size", at: str = "batch") -> str:
    """The values of every line as text."""
    parts = []
    for _, part in lines(data):
        points = [f"{number(row[value])} at {at} {row[over]}" for row in part.to_dict("records")]
        parts.append(f"{system_text(part.iloc[0].to_dict())} {', '.join(points)}")
    return f"In {unit}: {'; '.join(parts)}."
