"""Figures by batch size, a line for each system: throughput, latency, bytes, hit rate, tokens per pass, link rate."""

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

_ALL = "nox -s reproduce -- full"


@dataclass(frozen=True)
class _Plot:
    """A metric over batch sizes: its column, the axis label with its unit, and what is left out."""

    column: str
    axis: str
    scale: float = 1.0
    may_log: bool = True
    top: float | None = None
    above: float | None = None  # systems that never exceed it are left out
    line: str | None = None  # column that holds a ceiling, drawn as a line


def _data(plot: _Plot, material: Material) -> pd.DataFrame:
    records = material.records
    if plot.column.startswith("moved_bytes"):
        records = _counted(records)
    data = over_rounds(records, plot.column, plot.scale)
    lines = data.groupby(["kind", "title"])
    best = lines[plot.column].transform("max")
    if plot.above is not None:
        kept = best > plot.above
    else:
        kept = best.notna() | lines["status"].transform(lambda status: (status != "ok").all())
    if not data[plot.column].notna().any():
        return data.iloc[:0]
    data = data[kept].reset_index(drop=True)
    if plot.line:
        data[plot.line] = _ceiling(records)
    if plot.column.startswith("moved_bytes"):
        data["counted_by"] = data["title"].map(records.groupby("title")["counted_by"].first())
        smallest = data.groupby(["kind", "title"])[plot.column].transform("first")
        data["over_smallest_batch"] = data[plot.column] / smallest
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
    """GB/s that the calibration says the link's medium can do; NaN without one."""
    ceilings = records["achieved_link_gb_s"] / records["link_of_ceiling"]
    return float(ceilings.median())


def _paint(plot: _Plot, data: pd.DataFrame, looks: Looks) -> Any:
    if data["batch_size"].nunique() == 1:
        return _dots(plot, data, looks)
    figure, (axes,) = paint.panels(1, 1, 3.9)
    handles = paint.by_batch(axes, data, plot.column, looks)
    paint.value_axis(axes, data, plot.column, plot.axis, plot.may_log, plot.top)
    if plot.line and data[plot.line].notna().any():
        ceiling = float(data[plot.line].iloc[0])
        handles.append(axes.axhline(ceiling, color=style.INK, linewidth=1.4, linestyle=(0, (1, 1)), label="ceiling"))
        axes.set_ylim(0, 1.12 * max(ceiling, data[plot.column].max()))
    paint.legend(figure, handles)
    return figure


def _dots(plot: _Plot, data: pd.DataFrame, looks: Looks) -> Any:
    """One batch size: a row for each system."""
    figure, (axes,) = paint.panels(1, 1, 0.9 + paint.ROW_IN * len(data))
    for y, row in enumerate(data.to_dict("records")):
        marks = style.line_marks(paint.look(looks, row), row["kind"]) | {"linestyle": ""}
        part = pd.DataFrame([row])
        axes.errorbar(part[plot.column], [y], xerr=paint.whiskers(part, plot.column), capsize=2.5, **marks)
    paint.title_axis(axes, [system_text(row) for row in data.to_dict("records")])
    highest = data[[plot.column, f"{plot.column}_high"]].max().max()
    ceiling = data[plot.line].iloc[0] if plot.line else float("nan")
    axes.set_xlim(0, plot.top or 1.1 * max(highest, ceiling if ceiling == ceiling else 0.0) or 1.0)
    axes.set_xlabel(f"{plot.axis}, batch {data['batch_size'].iloc[0]}")
    if ceiling == ceiling:
        axes.axvline(ceiling, color=style.INK, linewidth=1.4, linestyle=(0, (1, 1)), label="ceiling")
        paint.legend(figure, axes.get_legend_handles_labels()[0][-1:])
    return figure


def _alt(plot: _Plot, title: str, data: pd.DataFrame) -> str:
    return f"{title}. {paint.describe(data, plot.column, plot.axis)}"


def _spec(id: str, title: str, question: str, plot: _Plot, caption: str = "", **more: str) -> Spec:
    return Spec(
        id=id,
        title=title,
        question=question,
        caption=f"{INTERVAL} {caption}".strip(),
        needs=more.get("needs", "finished cells of any system"),
        command=more.get("command", "nox -s reproduce"),
        data=partial(_data, plot),
        paint=partial(_paint, plot),
        alt=partial(_alt, plot, title),
        of_systems=id != "bytes_per_token",
    )


_COUNT = "Counted by the link; for systems that have none, by the kernel (the CSV says which)."
SPECS = (
    _spec(
        "throughput",
        "Decode throughput by batch size",
        "Who decodes most tokens per second?",
        _Plot("decode_tok_s", "decode tok/s"),
    ),
    _spec(
        "latency",
        "Time per output token by batch size",
        "How long does a sequence wait for its next token?",
        _Plot("tpot_s", "ms per output token", 1e3),
        "Lower is better. The first token (prefill) is left out.",
    ),
    _spec(
        "bytes",
        "Bytes moved by batch size",
        "How fast do a run's transfers grow with the batch?",
        _Plot("moved_bytes", "GB moved while decoding", 1e-9),
        f"Lower is better. {_COUNT}",
    ),
    _spec(
        "bytes_per_token",
        "Bytes per accepted token",
        "What does a token of the output cost in transfers?",
        _Plot("moved_bytes_per_token", "MB moved per token", 1e-6),
        f"Lower is better. {_COUNT}",
    ),
    _spec(
        "tokens_per_step",
        "Tokens per target pass",
        "How many tokens does one pass of the target give a row?",
        _Plot("tokens_per_step", "tokens per row and pass, T(γ)", may_log=False, above=1.0),
        "Systems that do not speculate have 1 and are left out.",
        needs="finished cells of a system that drafts",
    ),
    _spec(
        "hit_rate",
        "Expert hit rate",
        "How often is a wanted expert on the device already?",
        _Plot("hit_rate", "requests served on the device, %", 100.0, may_log=False, top=100.0),
        "Systems that do not know experts have none.",
        needs="finished cells of a system that counts expert requests",
    ),
    _spec(
        "link_rate",
        "Link bandwidth achieved, against its ceiling",
        "How much of what the link can do is used while it moves?",
        _Plot("achieved_link_gb_s", "GB/s while transferring", may_log=False, line="ceiling_gb_s"),
        "Bytes over the time the link was busy. The ceiling is this machine's calibration; "
        "without one (specmoe-bench calibrate) no line is drawn.",
        needs="finished cells of a system that has a link",
        command="specmoe-bench calibrate && nox -s reproduce",
    ),
)
