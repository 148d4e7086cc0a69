"""The kernels of experts: the rate at which they read weights, beside ``F.linear`` and the memory's own rate."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.lines import Line2D

from reports.figures import paint, style
from reports.figures.spec import Material, Spec
from reports.figures.style import Looks
from reports.text import number

CHOSEN, LINEAR = "chosen kernel", "F.linear"
_COLUMNS = ["kind", "dtype", "rows", "title", "kernel", "ms", "read_gb_s", "memory_read_gb_s"]
_MARKERS = {"streaming": "o", "onednn": "s", "onednn-widened": "D", "torch": "X"}
_NAMES = {"streaming": "streaming", "onednn": "oneDNN", "onednn-widened": "oneDNN, widened", "torch": "torch"}
_COLORS = {CHOSEN: style.KNOWN["specmoe"][0], LINEAR: style.KNOWN["on-demand"][0]}


def _data(material: Material) -> pd.DataFrame:
    record = material.kernels
    rows: list[list[Any]] = []
    for key, timings in record.kernels.items() if record else ():
        dtype = key.removeprefix("experts ")
        for count, one in sorted(timings.items()):
            memory = record.memory_read_gb_s if record else None
            rows.append(["measured", dtype, count, CHOSEN, one.kernel, one.ms, one.read_gb_s, memory])
            rows.append(["measured", dtype, count, LINEAR, "torch", one.f_linear_ms, one.f_linear_gb_s, memory])
    return pd.DataFrame(rows, columns=_COLUMNS)


def _paint(data: pd.DataFrame, looks: Looks) -> Any:
    dtypes, counts = list(dict.fromkeys(data["dtype"])), sorted(data["rows"].unique())
    figure, grid = paint.panels(len(dtypes), 2, 3.1, sharey=True)
    memory = float(data["memory_read_gb_s"].iloc[0])
    for axes, dtype in zip(grid, dtypes, strict=True):
        axes.axhline(memory, color=style.INK, linewidth=1.4, linestyle=(0, (1, 1)))
        for title, part in data[data["dtype"] == dtype].groupby("title", sort=False):
            places = [counts.index(rows) for rows in part["rows"]]
            axes.plot(places, part["read_gb_s"], color=_COLORS[str(title)], linewidth=1.6)
            for place, rate, kernel in zip(places, part["read_gb_s"], part["kernel"], strict=True):
                marker = "^" if title == LINEAR else _MARKERS.get(kernel, "o")
                axes.plot(place, rate, marker, color=_COLORS[str(title)], markersize=6.5)
        axes.set_title(dtype)
        axes.set_xticks(range(len(counts)), [str(rows) for rows in counts])
        axes.tick_params(axis="x", labelsize=9.5)
        axes.grid(axis="x", visible=False)
        axes.set_xlabel("rows (tokens of one expert)")
        axes.set_yscale("log")
        paint.plain_log(axes.yaxis, 1.0)
    grid[0].set_ylabel("GB/s of weights read (log scale)")
    paint.legend(figure, _handles(data))
    return figure


def _handles(data: pd.DataFrame) -> list[Line2D]:
    used = dict.fromkeys(data[data["title"] == CHOSEN]["kernel"])
    marks: dict[str, Any] = {"markersize": 6.5, "linewidth": 1.6}
    return [
        *(
            Line2D(
                [], [], color=_COLORS[CHOSEN], marker=_MARKERS.get(k, "o"), label=f"chosen: {_NAMES.get(k, k)}", **marks
            )
            for k in used
        ),
        Line2D([], [], color=_COLORS[LINEAR], marker="^", label=LINEAR, **marks),
        Line2D([], [], color=style.INK, linestyle=(0, (1, 1)), linewidth=1.4, label="memory read rate"),
    ]


def _alt(data: pd.DataFrame) -> str:
    """Both ends of every line."""
    parts = []
    for (dtype, title), part in data.groupby(["dtype", "title"], sort=False):
        ends = [f"{number(row['read_gb_s'])} at {row['rows']} rows" for row in part.iloc[[0, -1]].to_dict("records")]
        parts.append(f"{title}, {dtype}: {', '.join(ends)}")
    return f"GB/s of weights read. {'; '.join(parts)}. Memory: {number(data['memory_read_gb_s'].iloc[0])}."


SPECS = (
    Spec(
        id="performance-kernels",
        place=("performance", 10),
        title="Expert kernels and the memory's read rate",
        question="How near are products with few rows to the rate at which memory can be read?",
        caption="Bytes of one expert's weights over the median time of its products; weights come from memory, not "
        "from a cache. With many rows arithmetic bounds them.",
        needs="docs/records/kernels.json",
        command="nox -s bench -- tests/benchmarks/test_kernels.py",
        data=_data,
        paint=_paint,
        alt=_alt,
    ),
)
