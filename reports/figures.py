"""Figures of a summary as PNG, each with its data as CSV beside it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter

from reports import style
from reports.tables import number, system_text

LOG_FROM = 8.0  # largest over smallest value from which an axis is logarithmic
DODGE = 0.05  # categories' share between neighbouring systems


@dataclass(frozen=True)
class Figure:
    """A drawn figure; ``alt`` says in words what it shows."""

    name: str
    title: str
    caption: str
    alt: str
    png: Path
    csv: Path


@dataclass(frozen=True)
class _Plot:
    """What to draw over batch sizes: column ``value`` with whiskers ``value_low`` and ``value_high``."""

    name: str
    title: str
    value: str
    axis: str
    whiskers: str
    scale: float = 1.0
    may_log: bool = False
    baseline: float | None = None
    top: float | None = None
    above: float | None = None  # systems that never exceed it are left out


RANGE = "Points are medians over rounds, whiskers the smallest and largest round."
INTERVAL = "Points are medians of the ratio within a round, whiskers the bootstrap 95 % interval."

PLOTS = (
    _Plot("throughput", "Decode throughput", "decode_tok_s", "decode tok/s", RANGE, may_log=True),
    _Plot("speedup", "Speed-up over on-demand", "speedup", "decode speed ÷ on-demand", INTERVAL, baseline=1.0),
    _Plot("link_bytes", "Bytes over the link", "link_bytes_per_token", "MB per token", RANGE, 1e-6, True),
    _Plot("kernel_bytes", "Bytes read by the kernel", "kernel_read_bytes_per_token", "MB per token", RANGE, 1e-6, True),
    _Plot(
        "tokens_per_step",
        "Tokens per target pass",
        "tokens_per_step",
        "T(γ): tokens per row and pass",
        RANGE,
        above=1.0,
    ),
    _Plot("hit_rate", "Expert hit rate", "hit_rate", "requests served on the device, %", RANGE, 100.0, top=100.0),
)


def draw(summary: pd.DataFrame, positions: pd.DataFrame, folder: Path, suffix: str = "") -> list[Figure]:
    """Write the figures of one workload to ``folder``; those without any data are left out.

    Args:
        summary: of ``aggregate.summarize``, one workload.
        positions: of ``acceptance.by_position``, one workload.
        folder: made if missing.
        suffix: appended to every file name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    style.setup()
    styles = style.assign(zip(summary["title"], summary["system"], strict=True))
    shown = [(plot, _figures_of(plot, summary)) for plot in PLOTS]
    figures = [_by_batch(plot, data, styles, folder, suffix) for plot, data in shown if data[plot.value].notna().any()]
    if len(positions):
        figures.append(_by_position(positions, styles, folder, suffix))
    return figures


def _by_batch(plot: _Plot, data: pd.DataFrame, styles: dict[str, style.Style], folder: Path, suffix: str) -> Figure:
    batches = sorted(data["batch_size"].unique())
    figure, axes = plt.subplots(figsize=(style.PAGE_WIDTH_IN, 4.0))
    lines = list(data.groupby(["kind", "title"], sort=False))
    handles = []
    for i, ((kind, title), part) in enumerate(lines):
        shift = DODGE * (i - (len(lines) - 1) / 2) * min(1.0, 10 / len(lines))
        places = [batches.index(batch) + shift for batch in part["batch_size"]]
        handles.append(_line(axes, places, part, plot.value, styles[title], hollow=kind != "measured"))
    if (data["status"] != "ok").any():
        handles.append(_crosses(axes, lines, batches, styles))
    axes.set_xticks(range(len(batches)), [str(batch) for batch in batches])
    axes.set_xlim(-0.5, len(batches) - 0.5)
    axes.grid(axis="x", visible=False)
    _scale(axes, plot, data)
    axes.set(xlabel="batch size (sequences)", title=plot.title)
    return _finish(figure, handles, plot, data, folder, suffix)


def _figures_of(plot: _Plot, summary: pd.DataFrame) -> pd.DataFrame:
    """The rows and columns a plot shows, in its units; systems that never have the value are left out."""
    low, high = f"{plot.value}_low", f"{plot.value}_high"
    columns = ["kind", "title", "system", "batch_size", "status", "rounds_ok", plot.value, low, high]
    data = summary.loc[~summary["is_reference"] if plot.baseline else summary.index, columns].copy()
    data[[plot.value, low, high]] = data[[plot.value, low, high]].astype(float) * plot.scale
    lines = data.groupby(["kind", "title"])
    best = lines[plot.value].transform("max")
    if plot.above is not None:
        return data[best > plot.above].reset_index(drop=True)
    dead = lines["status"].transform(lambda status: (status != "ok").all())
    return data[best.notna() | dead].reset_index(drop=True)


def _line(axes: Any, places: list[float], part: pd.DataFrame, value: str, look: style.Style, hollow: bool) -> Line2D:
    middle = part[value].to_numpy(dtype=float)
    low = (middle - part[f"{value}_low"].to_numpy(dtype=float)).clip(min=0)
    high = (part[f"{value}_high"].to_numpy(dtype=float) - middle).clip(min=0)
    marks: dict[str, Any] = {
        "color": look.color,
        "marker": look.marker,
        "markerfacecolor": "white" if hollow else look.color,
        "linestyle": "--" if hollow else "-",
        "markersize": 7,
        "linewidth": 1.6,
    }
    axes.errorbar(places, middle, yerr=[low, high], capsize=3, elinewidth=1.3, **marks)
    return Line2D([], [], label=system_text(part.iloc[0].to_dict()), **marks)


def _crosses(axes: Any, lines: list[Any], batches: list[int], styles: Any) -> Line2D:
    """A cross on the axis where a cell gave no result."""
    for i, ((_, title), part) in enumerate(lines):
        shift = DODGE * (i - (len(lines) - 1) / 2) * min(1.0, 10 / len(lines))
        lost = part[part["status"] != "ok"]["batch_size"]
        places = [batches.index(batch) + shift for batch in lost]
        axes.plot(
            places,
            [0.02] * len(places),
            "x",
            color=styles[title].color,
            transform=axes.get_xaxis_transform(),
            markersize=8,
            markeredgewidth=2.2,
            clip_on=False,
        )
    return Line2D([], [], linestyle="", marker="x", color="#444444", markeredgewidth=2.2, label="no result")


def _scale(axes: Any, plot: _Plot, data: pd.DataFrame) -> None:
    values = data[plot.value][data[plot.value] > 0]
    if plot.baseline is not None:
        axes.axhline(plot.baseline, color="#444444", linewidth=1.2, linestyle=":")
    log = plot.may_log and len(values) and values.max() > LOG_FROM * values.min()
    if log:
        axes.set_yscale("log")
        shown = FuncFormatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_major_formatter(shown)
        narrow = values.max() < 30 * values.min()
        axes.yaxis.set_minor_formatter(FuncFormatter(_one_two_five) if narrow else NullFormatter())
    else:
        top = data[[plot.value, f"{plot.value}_high"]].max().max()
        axes.set_ylim(0, plot.top or 1.12 * max(top, plot.baseline or 0.0) or 1.0)
    axes.set_ylabel(plot.axis + (" (log scale)" if log else ""))


def _one_two_five(value: float, _: int | None = None) -> str:
    return f"{value:g}" if f"{value:e}"[0] in "25" else ""


def _finish(figure: Any, handles: list[Line2D], plot: _Plot, data: pd.DataFrame, folder: Path, suffix: str) -> Figure:
    columns = 2 if max(len(str(handle.get_label())) for handle in handles) > 24 else 3
    figure.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=min(columns, len(handles)))
    png, csv = folder / f"{plot.name}{suffix}.png", folder / f"{plot.name}{suffix}.csv"
    figure.savefig(png)
    plt.close(figure)
    data.to_csv(csv, index=False)
    hollow = " Hollow marks and dashed lines: not measured; the legend names the kind."
    caption = plot.whiskers + (hollow if (data["kind"] != "measured").any() else "")
    return Figure(plot.name, plot.title, caption, _alt(plot, data), png, csv)


def _alt(plot: _Plot, data: pd.DataFrame) -> str:
    parts = []
    for (_, _), part in data.groupby(["kind", "title"], sort=False):
        points = [f"{number(row[plot.value])} at batch {row['batch_size']}" for row in part.to_dict("records")]
        parts.append(f"{system_text(part.iloc[0].to_dict())} {', '.join(points)}")
    return f"{plot.title} ({plot.axis}) by batch size. {'; '.join(parts)}."


def _by_position(data: pd.DataFrame, styles: dict[str, style.Style], folder: Path, suffix: str) -> Figure:
    batches = sorted(data["batch_size"].unique())
    across = min(3, len(batches))
    down = -(-len(batches) // across)
    size = (style.PAGE_WIDTH_IN, 0.9 + 2.9 * down)
    figure, grid = plt.subplots(down, across, figsize=size, sharex=True, sharey=True, squeeze=False)
    handles: dict[str, Line2D] = {}
    for axes, batch in zip(grid.flat, batches, strict=False):
        for (kind, title), part in data[data["batch_size"] == batch].groupby(["kind", "title"], sort=False):
            hollow, look = kind != "measured", styles[title]
            marks: dict[str, Any] = {
                "color": look.color,
                "marker": look.marker,
                "markersize": 5.5,
                "linestyle": "--" if hollow else "-",
            }
            marks["markerfacecolor"] = "white" if hollow else look.color
            axes.plot(part["position"], 100 * part["accepted_share"], **marks)
            name = system_text(part.iloc[0].to_dict())
            handles[name] = Line2D([], [], label=name, **marks)
        axes.set_title(f"batch {batch}", fontsize=10.5, fontweight="normal")
        axes.set_ylim(0, 104)
        axes.set_xticks(_positions(int(data["position"].max())))
    for axes in list(grid.flat)[len(batches) :]:
        axes.set_visible(False)
    for axes in grid[:, 0]:
        axes.set_ylabel("accepted ÷ drafted, %")
    for axes in grid[-1, :]:
        axes.set_xlabel("draft position")
    figure.suptitle("Acceptance by draft position", x=0.01, ha="left", fontsize=12, fontweight="bold")
    figure.tight_layout()
    caption = "Drafted tokens the target kept, all repetitions and rounds together; position 1 is drafted first."
    plot = _Plot("acceptance_by_position", "Acceptance by draft position", "accepted_share", "share", caption)
    drawn = _finish(figure, list(handles.values()), plot, data, folder, suffix)
    ends = [
        f"{system_text(part.iloc[0].to_dict())} at batch {batch}: {100 * part['accepted_share'].iloc[0]:.0f} % at "
        f"position 1, {100 * part['accepted_share'].iloc[-1]:.0f} % at position {part['position'].iloc[-1]}"
        for (_, _, batch), part in data.groupby(["kind", "title", "batch_size"], sort=False)
    ]
    alt = f"Share of drafted tokens kept, by position. {'; '.join(ends)}."
    return replace(drawn, alt=alt)


def _positions(last: int) -> list[int]:
    step = 1 if last <= 8 else 2 if last <= 16 else 8
    return [1, *range(1 + step, last + 1, step)]
