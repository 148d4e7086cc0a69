"""Figures of a projection.  Projected marks are hollow with dotted lines, everywhere; measured ones are filled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullFormatter

from reports.figures import style
from reports.results.projection import Document

PROJECTED: dict[str, Any] = {"markerfacecolor": "white", "linestyle": ":", "linewidth": 1.6, "markeredgewidth": 1.5}
"""How anything projected is drawn."""
_TITLES = {"nllb-moe": "NLLB-MoE", "mixtral-8x7b": "Mixtral-8x7B", "llama-4-scout": "Llama-4-Scout"}
_SYSTEMS = {"on-demand": "OnDemand", "overlap": "Overlap (oracle)", "caching": "Caching 10 %", "specmoe": "SpecMoE"}
_BAND = "#EEEEEE"


@dataclass(frozen=True)
class Figure:
    """A drawn figure of kind *projected*; ``alt`` says in words what it shows."""

    name: str
    title: str
    caption: str
    alt: str
    png: Path
    svg: Path | None
    csv: Path


@dataclass(frozen=True)
class Plan:
    """A figure to be drawn: its words, its data, and who draws it."""

    name: str
    title: str
    caption: str
    alt: str
    data: Callable[[Document], pd.DataFrame]
    drawn: Callable[[pd.DataFrame], Any]


def planned(content: Document) -> list[Plan]:
    """The figures that a projection has data for."""
    return [plan for plan in _PLANS if len(plan.data(content))]


def draw(content: Document, folder: Path, kinds: tuple[str, ...] = ("png", "svg")) -> list[Figure]:
    """Write each figure as PNG (and SVG), its data as CSV beside it."""
    style.setup()
    folder.mkdir(parents=True, exist_ok=True)
    return [_draw(plan, plan.data(content), folder, kinds) for plan in planned(content)]


def _draw(plan: Plan, data: pd.DataFrame, folder: Path, kinds: tuple[str, ...]) -> Figure:
    canvas = plan.drawn(data)
    paths = {kind: folder / f"{plan.name}.{kind}" for kind in (*kinds, "csv")}
    with mpl.rc_context({"svg.hashsalt": plan.name}):  # equal data, equal files
        for kind in kinds:
            canvas.savefig(paths[kind], metadata={"Date": None} if kind == "svg" else {"Software": None})
    plt.close(canvas)
    data.to_csv(paths["csv"], index=False)
    return Figure(plan.name, plan.title, plan.caption, plan.alt, paths["png"], paths.get("svg"), paths["csv"])


def _paper_data(content: Document) -> pd.DataFrame:
    rows = [row for row in content["paper"] if row["role"] == "prediction"]
    return pd.DataFrame(rows)[["id", "title", "unit", "paper", "projected", "nominal", "error"]]


def _paper(data: pd.DataFrame) -> Any:
    canvas, axes = plt.subplots(figsize=(style.PAGE_WIDTH_IN, 0.3 * len(data) + 1.3))
    places = range(len(data))
    axes.axvspan(1 / 1.15, 1.15, color=_BAND, zorder=0)
    axes.axvline(1.0, color="black", linewidth=1)
    known = (data["projected"] / data["paper"], data["nominal"] / data["paper"])
    near = [(r > 0.2) & (r < 5) for r in known]  # a tok/s with another link rate is off the scale, and says nothing
    color = style.KNOWN["specmoe"][0]
    axes.plot(
        known[1][near[1]],
        [p for p, n in zip(places, near[1], strict=True) if n],
        "x",
        color="#7F7F7F",
        label="link at nominal 64 GB/s",
    )
    axes.plot(known[0], list(places), "o", color=color, markerfacecolor="white", markeredgewidth=1.5, label="projected")
    axes.set_yticks(list(places), data["title"])
    axes.invert_yaxis()
    _log(axes, "x", (0.5, 0.7, 1, 1.5, 2, 3))
    axes.set_xlabel("projected ÷ paper")
    axes.set_title("Projected against the paper")
    axes.legend(loc="lower right")
    return canvas


def _validation_data(content: Document) -> pd.DataFrame:
    rows = (content["validation"] or {}).get("rows", [])
    columns = [
        "experiment",
        "label",
        "system",
        "batch_size",
        "calibration",
        "measured_tok_s",
        "projected_tok_s",
        "error",
    ]
    return pd.DataFrame(rows, columns=columns) if rows else pd.DataFrame()


def _validation(data: pd.DataFrame) -> Any:
    canvas, axes = plt.subplots(figsize=(style.PAGE_WIDTH_IN, 4.6))
    ends = [
        0.9 * data[["measured_tok_s", "projected_tok_s"]].min().min(),
        1.1 * data[["measured_tok_s", "projected_tok_s"]].max().max(),
    ]
    axes.fill_between(ends, [e / 1.15 for e in ends], [e * 1.15 for e in ends], color=_BAND, zorder=0, label="± 15 %")
    axes.plot(ends, ends, color="black", linewidth=1)
    for system, rows in data.groupby("system"):
        color, marker = style.KNOWN[str(system)]
        for calibration, part in rows.groupby("calibration"):
            axes.plot(
                part["measured_tok_s"],
                part["projected_tok_s"],
                marker,
                color="#9A9A9A" if calibration else color,
                markerfacecolor="white",
                markeredgewidth=1.5,
                label=f"{_SYSTEMS.get(str(system), system)}{', calibration' if calibration else ''}".replace(
                    " 10 %", ""
                ),
            )
    for which in ("x", "y"):
        _log(axes, which, (30, 50, 100, 200, 300, 500))
    axes.set_xlabel("measured decode tok/s")
    axes.set_ylabel("projected decode tok/s")
    axes.set_title("Predicted against measured, this machine")
    axes.legend()
    return canvas


def _swing_data(content: Document) -> pd.DataFrame:
    return pd.DataFrame(content["sensitivity"]["swings"])


def _swings(data: pd.DataFrame) -> Any:
    canvas, axes = plt.subplots(figsize=(style.PAGE_WIDTH_IN, 0.38 * len(data) + 1.4))
    base = data["speedup_base"].iloc[0]
    for place, row in enumerate(data.itertuples()):
        for end, value, color in (("low", row.low, "#56B4E9"), ("high", row.high, "#D55E00")):
            reached = getattr(row, f"speedup_{end}")
            axes.barh(
                place,
                reached - base,
                left=base,
                color="white",
                edgecolor=color,
                hatch="///",
                linewidth=1.4,
                height=0.62,
            )
            if abs(reached - base) > 0.02:
                right = reached > base
                axes.annotate(
                    _plain(value),
                    (reached, place),
                    xytext=(4 if right else -4, 0),
                    textcoords="offset points",
                    ha="left" if right else "right",
                    va="center",
                    fontsize=9,
                )
    axes.axvline(base, color="black", linewidth=1)
    axes.set_yticks(range(len(data)), [f"{r.input}: {_plain(r.base)} {r.unit}" for r in data.itertuples()])
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel("projected speed-up over OnDemand, NLLB-MoE, batch 256")
    axes.set_title("Sensitivity of the headline to each input")
    return canvas


def _link_data(content: Document) -> pd.DataFrame:
    return pd.DataFrame(content["sensitivity"]["link_lines"])


def _links(data: pd.DataFrame) -> Any:
    canvas, panels = plt.subplots(1, data["model"].nunique(), figsize=(style.PAGE_WIDTH_IN, 3.1), sharey=True)
    for axes, (model, rows) in zip(panels, data.groupby("model", sort=False), strict=True):
        for system, line in rows.groupby("system", sort=False):
            color, marker = style.KNOWN[str(system)]
            axes.plot(
                line["link_gb_s"],
                line["speedup"],
                color=color,
                marker=marker,
                markersize=5,
                label=_SYSTEMS[str(system)],
                **PROJECTED,
            )
        axes.axhline(1.0, color="black", linewidth=1)
        _log(axes, "x", (1, 4, 16, 64))
        axes.set_title(_TITLES.get(str(model), str(model)), fontsize=10.5)
        axes.set_xlabel("link, GB/s")
    panels[0].set_ylabel("projected speed ÷ OnDemand")
    panels[-1].legend(fontsize=8.5)
    canvas.suptitle("Speed-up by link rate, batch 256", x=0.05, ha="left", fontweight="bold", fontsize=12)
    canvas.tight_layout()
    return canvas


def _batch_data(content: Document) -> pd.DataFrame:
    data = pd.DataFrame(content["series"])
    return data[data["model"] == "nllb-moe"].reset_index(drop=True)


def _batches(data: pd.DataFrame) -> Any:
    canvas, (left, right) = plt.subplots(1, 2, figsize=(style.PAGE_WIDTH_IN, 3.4))
    for system, line in data.groupby("system", sort=False):
        color, marker = style.KNOWN[str(system)]
        how = {"color": color, "marker": marker, "markersize": 5, "label": _SYSTEMS[str(system)], **PROJECTED}
        left.plot(line["batch_size"], line["tok_s"], **how)
        right.plot(line["batch_size"], line["bytes_per_token"] * line["batch_size"] / 1e9, **how)
    for axes, label, ticks in (
        (left, "projected decode tok/s", (5, 10, 20, 50, 100)),
        (right, "GB per token step", (0.2, 0.5, 1, 2, 5, 10, 20)),
    ):
        _log(axes, "x", (1, 4, 16, 64, 256))
        _log(axes, "y", ticks)
        axes.set_xlabel("batch size")
        axes.set_ylabel(label)
    left.plot([256, 256], [28.6, 123.0], "*", color="black", markersize=9, label="paper")
    left.legend(fontsize=8.5)
    canvas.suptitle("NLLB-MoE on the paper's machine", x=0.05, ha="left", fontweight="bold", fontsize=12)
    canvas.tight_layout()
    return canvas


def _plain(value: float) -> str:
    """Three digits, never as a power of ten."""
    return (
        f"{value:.0f}" if value >= 100 else f"{value:.6f}".rstrip("0").rstrip(".") if value < 0.01 else f"{value:.3g}"
    )


def _log(axes: Axes, which: str, ticks: tuple[float, ...]) -> None:
    """A logarithmic axis with plain numbers."""
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_ticks(ticks)
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


_PLANS = (
    Plan(
        "projection-paper",
        "Projected against the paper",
        "Each predicted figure of the paper as projected ÷ paper; the band is ± 15 %. All marks are projected.",
        "Dot plot of projected over paper for every predicted figure",
        _paper_data,
        _paper,
    ),
    Plan(
        "projection-validation",
        "Predicted against measured on this machine",
        "Throughput of cells measured on this machine against its projection; grey cells were used for calibration.",
        "Scatter of projected over measured throughput around the diagonal",
        _validation_data,
        _validation,
    ),
    Plan(
        "projection-sensitivity",
        "Sensitivity of the headline to each input",
        "Projected speed-up with one input changed at a time; numbers at the bars are the input's values.",
        "Tornado chart of the projected speed-up, widest input first",
        _swing_data,
        _swings,
    ),
    Plan(
        "projection-link",
        "Speed-up by link rate",
        "Projected speed over OnDemand at batch 256, over the rate of the link.",
        "Lines of projected speed-up over link rate for three models",
        _link_data,
        _links,
    ),
    Plan(
        "projection-batch",
        "NLLB-MoE on the paper's machine by batch size",
        "Projected throughput and bytes per token step; stars are the two throughputs that the paper states.",
        "Lines of projected throughput and bytes by batch size for four systems",
        _batch_data,
        _batches,
    ),
)
