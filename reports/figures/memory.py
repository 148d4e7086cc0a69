"""Peak memory of every system beside its limit."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from reports.figures import paint, style
from reports.figures.spec import Material, Spec
from reports.figures.style import Looks
from reports.text import number
from reports.wording.tables import system_text

_COLUMNS = ["kind", "title", "system", "batch_size", "peak_gb", "peak_expert_gb", "limit_gb", "enforced", "cells"]


def _data(material: Material) -> pd.DataFrame:
    finished = material.finished
    rows = []
    for (kind, title, system), part in finished.groupby(["kind", "title", "system"], sort=False):
        peaks = part["limit_peak_bytes"].astype(float).fillna(part["peak_rss_bytes"].astype(float))
        if not peaks.notna().any():
            continue
        largest = peaks.idxmax()
        experts = float(part["peak_device_expert_bytes"].max()) / 1e9
        limit = part["limit_bytes"].loc[largest]
        limit_gb = float("nan") if pd.isna(limit) else float(limit) / 1e9
        enforced = bool(part["limit_enforced"].all())
        where = int(part["batch_size"].loc[largest])
        row = (kind, title, system, where, peaks.loc[largest] / 1e9, experts, limit_gb, enforced, len(part))
        rows.append(dict(zip(_COLUMNS, row, strict=True)))
    return pd.DataFrame(rows, columns=_COLUMNS)


def _paint(data: pd.DataFrame, looks: Looks) -> Any:
    figure, (axes,) = paint.panels(1, 1, 1.1 + paint.ROW_IN * len(data))
    for y, row in enumerate(data.to_dict("records")):
        color = paint.look(looks, row).color
        axes.barh(y, row["peak_gb"], height=0.66, alpha=0.35, **style.bar_marks(color, row["kind"]))
        axes.barh(y, row["peak_expert_gb"], height=0.3, facecolor=color, edgecolor="white", linewidth=0.6)
        if row["limit_gb"] == row["limit_gb"]:
            axes.plot([row["limit_gb"]] * 2, [y - 0.42, y + 0.42], color=style.INK, linewidth=2.4)
    paint.title_axis(axes, [system_text(row) for row in data.to_dict("records")])
    axes.set_xlim(0, 1.06 * data[["peak_gb", "limit_gb"]].max().max())
    axes.set_xlabel("GB, largest over all batch sizes and rounds")
    handles = [
        Patch(facecolor="#AAAAAA", alpha=0.5, label="process, page cache included"),
        Patch(facecolor="#555555", label="experts on the device"),
        Line2D([], [], color=style.INK, linewidth=2.4, label="limit of the process"),
    ]
    paint.legend(figure, handles)
    return figure


def _alt(data: pd.DataFrame) -> str:
    parts = []
    for row in data.to_dict("records"):
        limit = f"limit {number(row['limit_gb'])} GB" if row["limit_gb"] == row["limit_gb"] else "no limit"
        experts = (
            f", experts {number(row['peak_expert_gb'])} GB" if row["peak_expert_gb"] == row["peak_expert_gb"] else ""
        )
        parts.append(f"{system_text(row)} {number(row['peak_gb'])} GB{experts}, {limit}")
    return f"Peak memory by system. {'; '.join(parts)}."


SPECS = (
    Spec(
        id="memory",
        place=("resources", 10),
        title="Peak memory by system",
        question="Did every system stay within the same limit?",
        caption="Largest peak over all batch sizes and rounds. Where the kernel enforces the limit, the peak is its "
        "count for the whole process group, page cache included; elsewhere it is the resident set of the process.",
        needs="finished cells of any system",
        command="nox -s reproduce",
        data=_data,
        paint=_paint,
        alt=_alt,
        of_systems=True,
    ),
)
