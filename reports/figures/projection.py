"""Figures that compare a projection: with the paper's figures, and with measurements on this machine."""

from __future__ import annotations

from functools import partial
from typing import Any

import pandas as pd

from reports.figures import paint, style
from reports.figures.spec import Material, Spec
from reports.figures.style import Looks
from reports.text import number

NAMES = {"on-demand": "OnDemand", "overlap": "Overlap (oracle)", "caching": "Caching", "specmoe": "SpecMoE"}
_BAND = 1.15
_BAND_COLOR = "#EEEEEE"
_NEAR = (0.2, 5.0)  # tok/s at another link rate are not comparable and would be off the scale


def input_name(row: dict[str, Any]) -> str:
    """Name and unit of a varied input, such as ``link rate (GB/s)``."""
    unit = row["unit"].removeprefix("= ")
    return f"{row['input']} {unit if unit.startswith('(') else f'({unit})'}"


def _paper_data(material: Material) -> pd.DataFrame:
    rows = [row for row in material.projection.get("paper", ()) if row["role"] == "prediction"]
    wanted = ["id", "title", "unit", "paper", "projected", "nominal", "error"]
    return pd.DataFrame(rows, columns=wanted).assign(kind="projected")


def _paint_paper(data: pd.DataFrame, looks: Looks) -> Any:
    figure, (axes,) = paint.panels(1, 1, 0.3 * len(data) + 1.0)
    axes.axvspan(1 / _BAND, _BAND, color=_BAND_COLOR, zorder=0)
    axes.axvline(1.0, color=style.INK, linewidth=1)
    places = pd.Series(range(len(data)), index=data.index)
    marks = {"linestyle": "", "markeredgewidth": 1.5}
    for name, label, mark in (
        ("nominal", "link at its nominal 64 GB/s", {"marker": "x", "color": "#7F7F7F"}),
        ("projected", "projected", {"marker": "o", "color": style.KNOWN["specmoe"][0], "fillstyle": "none"}),
    ):
        ratio = data[name] / data["paper"]
        near = ratio.between(*_NEAR, inclusive="neither") if name == "nominal" else ratio.notna()
        axes.plot(ratio[near], places[near], label=label, **marks, **mark)
    paint.plain_ticks(axes, "x", (0.5, 0.7, 1, 1.5, 2, 3))
    axes.set_yticks(places, data["title"])
    axes.invert_yaxis()
    axes.set_xlabel("projected ÷ paper (log scale)")
    paint.legend(figure, axes.get_legend_handles_labels()[0][::-1])
    return figure


def _alt_paper(data: pd.DataFrame) -> str:
    parts = [f"{row['title']} {row['error']:+.0%}" for row in data.to_dict("records")]
    return f"Error of every predicted figure of the paper. {'; '.join(parts)}."


def _validation_data(material: Material) -> pd.DataFrame:
    rows = (material.projection.get("validation") or {}).get("rows", [])
    wanted = ["experiment", "label", "system", "batch_size", "calibration", "measured_tok_s", "projected_tok_s"]
    data = pd.DataFrame(rows, columns=[*wanted, "error"])
    return data.assign(kind="projected", title=[NAMES.get(system, system) for system in data["system"]])


def _paint_validation(data: pd.DataFrame, looks: Looks) -> Any:
    figure, (axes,) = paint.panels(1, 1, 4.3)
    values = data[["measured_tok_s", "projected_tok_s"]]
    ends = [0.9 * values.min().min(), 1.1 * values.max().max()]
    axes.fill_between(
        ends, [end / _BAND for end in ends], [end * _BAND for end in ends], color=_BAND_COLOR, zorder=0, label="± 15 %"
    )
    axes.plot(ends, ends, color=style.INK, linewidth=1)
    for (title, calibration), part in data.groupby(["title", "calibration"]):
        marks = style.line_marks(paint.look(looks, part.iloc[0]), "projected") | {"linestyle": ""}
        marks |= {"color": "#9A9A9A"} if calibration else {}
        label = f"{title}, calibration" if calibration else str(title)
        axes.plot(part["measured_tok_s"], part["projected_tok_s"], markeredgewidth=1.5, label=label, **marks)
    for which in ("x", "y"):
        paint.plain_ticks(axes, which, (30, 50, 100, 200, 300, 500))
    axes.set_xlabel("measured decode tok/s (log scale)")
    axes.set_ylabel("projected decode tok/s (log scale)")
    paint.legend(figure, axes.get_legend_handles_labels()[0])
    return figure


def _alt_validation(data: pd.DataFrame) -> str:
    errors = data[~data["calibration"]].groupby("title")["error"]
    parts = [f"{title} {number(100 * part.abs().median())} % over {len(part)} cells" for title, part in errors]
    return f"Projected against measured throughput of single cells. Median error: {'; '.join(parts)}."


_spec = partial(
    Spec, needs="a projection (projection.json)", command="specmoe-bench project --preset paper", of_systems=False
)
SPECS = (
    _spec(
        id="projection-paper",
        place=("projection", 10),
        title="Projection against the paper",
        question="How close is the projection to the paper's figures?",
        caption="Each predicted figure of the paper: projected value divided by the paper's. Grey band: within 15 %.",
        data=_paper_data,
        paint=_paint_paper,
        alt=_alt_paper,
    ),
    _spec(
        id="projection-validation",
        place=("projection", 20),
        title="Projection against measurements on this machine",
        question="How close is the projection to cells measured on this machine?",
        caption="A mark is one cell; on the line, projection and measurement agree. Grey marks were used for "
        "calibration, all others were held out. Grey band: within 15 %.",
        data=_validation_data,
        paint=_paint_validation,
        alt=_alt_validation,
    ),
)
