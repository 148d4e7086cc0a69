"""Draft lengths that the controller chose."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.ticker import MaxNLocator

from reports.figures import paint, style
from reports.figures.intervals import repetitions
from reports.figures.spec import Material, Spec
from reports.figures.style import Looks

_BY = ["kind", "title", "system", "batch_size"]


def _data(material: Material) -> pd.DataFrame:
    rows = []
    records = material.finished
    for row in records.to_dict("records"):
        if row["record"]["cell"].get("options", {}).get("controller") != "auto":
            continue
        for repetition in repetitions(row["record"]):
            for number_, cycle in enumerate(repetition.get("cycles") or [], start=1):
                named = {name: row[name] for name in (*_BY, "round")}
                rows.append(
                    named | {"cycle": number_, "gamma": cycle["gamma"], "draft_experts": cycle["draft_experts"]}
                )
    return pd.DataFrame(rows, columns=[*_BY, "round", "cycle", "gamma", "draft_experts"])


def _paint(data: pd.DataFrame, looks: Looks) -> Any:
    batches = sorted(data["batch_size"].unique())
    figure, grid = paint.panels(len(batches), 1 if len(batches) <= 3 else 2, 1.75, sharey=True)
    rounds = sorted(data["round"].unique())
    for axes, batch in zip(grid, batches, strict=True):
        part = data[data["batch_size"] == batch]
        for (kind, _, number_), line in part.groupby(["kind", "title", "round"], sort=False):
            place = rounds.index(number_)
            marks = style.line_marks(paint.look(looks, line.iloc[0]), kind) | {"markersize": 3.5, "linewidth": 1.2}
            shade = 1.0 - 0.6 * place / max(1, len(rounds) - 1)
            marks |= {"alpha": shade, "drawstyle": "steps-mid", "marker": "."}
            axes.plot(line["cycle"], line["gamma"], label=f"round {number_ + 1}", **marks)
        axes.set_title(f"batch {batch}")
        axes.set_ylim(-0.6, data["gamma"].max() * 1.08 + 0.5)
        axes.set_ylabel("γ chosen")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlim(0, part["cycle"].max() + 1)
    for axes in grid[-2:] if len(batches) > 3 else grid[-1:]:
        axes.set_xlabel("decode cycle")
    paint.legend(figure, grid[0].get_legend_handles_labels()[0])
    return figure


def _alt(data: pd.DataFrame) -> str:
    parts = []
    for (title, batch), part in data.groupby(["title", "batch_size"], sort=False):
        off = 100 * (part["gamma"] == 0).mean()
        last = part.groupby("round")["gamma"].last().tolist()
        parts.append(f"{title} at batch {batch}: gamma 0 in {off:.0f} % of cycles, at the end {last} by round")
    return f"Draft length the controller chose in each cycle. {'; '.join(parts)}."


SPECS = (
    Spec(
        id="controller",
        place=("drafting", 40),
        title="Draft length chosen by the controller",
        question="How long a draft does the controller choose in each cycle?",
        caption="γ in each decode cycle; 0 means no draft. Each round is one line, so there is no interval.",
        needs="SpecMoE with controller: auto",
        command="nox -s reproduce",
        data=_data,
        paint=_paint,
        alt=_alt,
    ),
)
