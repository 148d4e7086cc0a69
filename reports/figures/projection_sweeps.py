"""Figures of a projection's sweeps: each input on its own, the link's rate, the batch size."""

from __future__ import annotations

from functools import partial
from typing import Any

import pandas as pd

from reports.figures import paint, style
from reports.figures.projection import NAMES, input_name
from reports.figures.spec import Material, Spec
from reports.figures.style import Looks
from reports.results import paper
from reports.text import number

_MODELS = {"nllb-moe": "NLLB-MoE", "mixtral-8x7b": "Mixtral-8x7B", "llama-4-scout": "Llama-4-Scout"}
_TITLES = NAMES | {"caching": "Caching 10 %"}
_LARGEST_BATCH = paper.BATCH_SIZES[-1]


def _titled(data: pd.DataFrame) -> pd.DataFrame:
    return data.assign(kind="projected", title=[_TITLES.get(system, system) for system in data.get("system", ())])


def _input_data(material: Material) -> pd.DataFrame:
    return pd.DataFrame(material.projection.get("sensitivity", {}).get("swings", [])).assign(kind="projected")


def _paint_inputs(data: pd.DataFrame, looks: Looks) -> Any:
    figure, (axes,) = paint.panels(1, 1, 0.38 * len(data) + 0.9)
    base = data["speedup_base"].iloc[0]
    for place, row in enumerate(data.to_dict("records")):
        for end, color in (("low", "#56B4E9"), ("high", "#D55E00")):
            reached = row[f"speedup_{end}"]
            marks = {"facecolor": "white", "edgecolor": color, "linestyle": style.KINDS["projected"].linestyle}
            axes.barh(place, reached - base, left=base, height=0.62, linewidth=1.6, **marks)
            if abs(reached - base) > 0.02:
                right = reached > base
                axes.annotate(
                    _plain(row[end]),
                    (reached, place),
                    xytext=(4 if right else -4, 0),
                    textcoords="offset points",
                    ha="left" if right else "right",
                    va="center",
                    fontsize=9,
                )
    axes.axvline(base, color=style.INK, linewidth=1)
    paint.title_axis(axes, [_input(row) for row in data.to_dict("records")], width=40)
    axes.margins(x=0.12)
    axes.set_xlabel("projected speed-up over OnDemand")
    return figure


def _alt_inputs(data: pd.DataFrame) -> str:
    parts = [
        f"{row['input']} {_plain(row['low'])} to {_plain(row['high'])}: {row['speedup_low']:.2f} to "
        f"{row['speedup_high']:.2f}"
        for row in data.to_dict("records")
    ]
    return f"Projected speed-up by input, widest range first. {'; '.join(parts)}."


def _link_data(material: Material) -> pd.DataFrame:
    return _titled(pd.DataFrame(material.projection.get("sensitivity", {}).get("link_lines", [])))


def _paint_links(data: pd.DataFrame, looks: Looks) -> Any:
    models = list(dict.fromkeys(data["model"]))
    figure, grid = paint.panels(len(models), 3, 2.9, sharey=True)
    for axes, model in zip(grid, models, strict=True):
        for title, line in data[data["model"] == model].groupby("title", sort=False):
            marks = style.line_marks(paint.look(looks, line.iloc[0]), "projected") | {"markersize": 5}
            axes.plot(line["link_gb_s"], line["speedup"], label=title, **marks)
        axes.axhline(1.0, color=style.INK, linewidth=1)
        paint.plain_ticks(axes, "x", (1, 4, 16, 64))
        axes.set_title(_MODELS.get(model, model))
        axes.set_xlabel("link, GB/s (log)")
    grid[0].set_ylabel("projected speed ÷ OnDemand")
    paint.legend(figure, grid[0].get_legend_handles_labels()[0])
    return figure


def _alt_links(data: pd.DataFrame) -> str:
    parts = [
        f"{title} on {_MODELS.get(str(model), model)} {number(line['speedup'].iloc[0])} at "
        f"{number(line['link_gb_s'].iloc[0])} GB/s, {number(line['speedup'].iloc[-1])} at "
        f"{number(line['link_gb_s'].iloc[-1])} GB/s"
        for (model, title), line in data.groupby(["model", "title"], sort=False)
    ]
    return f"Projected speed-up over OnDemand by rate of the link. {'; '.join(parts)}."


def _batch_data(material: Material) -> pd.DataFrame:
    rows = [row for row in material.projection.get("series", ()) if row["model"] == "nllb-moe"]
    data = _titled(pd.DataFrame(rows))
    if data.empty:
        return data
    last = data["batch_size"] == _LARGEST_BATCH
    stated = {row["id"].removeprefix("throughput."): row["paper"] for row in material.projection["paper"]}
    return data.assign(
        gb_per_step=data["bytes_per_token"] * data["batch_size"] / 1e9,
        paper_tok_s=data["system"].map(stated).where(last),
    )


def _paint_batches(data: pd.DataFrame, looks: Looks) -> Any:
    figure, (left, right) = paint.panels(2, 2, 3.1)
    for title, line in data.groupby("title", sort=False):
        marks = style.line_marks(paint.look(looks, line.iloc[0]), "projected") | {"markersize": 5, "label": title}
        left.plot(line["batch_size"], line["tok_s"], **marks)
        right.plot(line["batch_size"], line["gb_per_step"], **marks)
    left.plot(data["batch_size"], data["paper_tok_s"], "*", color=style.INK, markersize=9, label="paper")
    for axes, label, ticks in (
        (left, "projected decode tok/s (log)", (5, 10, 20, 50, 100)),
        (right, "GB moved per decode step (log)", (0.2, 0.5, 1, 2, 5, 10, 20)),
    ):
        paint.plain_ticks(axes, "x", (1, 4, 16, 64, 256))
        paint.plain_ticks(axes, "y", ticks)
        axes.set_xlabel("batch size (log)")
        axes.set_ylabel(label)
    paint.legend(figure, left.get_legend_handles_labels()[0])
    return figure


def _alt_batches(data: pd.DataFrame) -> str:
    return f"Projected throughput by batch size. {paint.describe(data, 'tok_s', 'tok/s')}"


def _input(row: dict[str, Any]) -> str:
    return f"{input_name(row)}: {_plain(row['base'])}"


def _plain(value: float) -> str:
    """Three digits, never as a power of ten."""
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.6f}".rstrip("0").rstrip(".") if value < 0.01 else f"{value:.3g}"


_spec = partial(
    Spec, needs="a projection (projection.json)", command="specmoe-bench project --preset paper", of_systems=False
)
SPECS = (
    _spec(
        id="projection-sensitivity",
        place=("projection", 30),
        title=f"Sensitivity of the projected speed-up, NLLB-MoE, batch {_LARGEST_BATCH}",
        question="Which inputs does the projected speed-up depend on?",
        caption="Speed-up of SpecMoE over OnDemand with one input changed at a time, the widest range first. The "
        "input's value stands at the end of each bar; blue: lower, orange: higher than the value used.",
        data=_input_data,
        paint=_paint_inputs,
        alt=_alt_inputs,
    ),
    _spec(
        id="projection-link",
        place=("projection", 40),
        title=f"Projected speed-up by link rate, batch {_LARGEST_BATCH}",
        question="How does the speed-up depend on the rate of the link?",
        caption="Projected decode speed divided by OnDemand's at the same link rate.",
        data=_link_data,
        paint=_paint_links,
        alt=_alt_links,
    ),
    _spec(
        id="projection-batch",
        place=("projection", 50),
        title="Projected NLLB-MoE by batch size, on the paper's machine",
        question="How do throughput and transfers grow with the batch?",
        caption="Left: decode throughput; stars are the two values that the paper states. Right: bytes moved per step.",
        data=_batch_data,
        paint=_paint_batches,
        alt=_alt_batches,
    ),
)
