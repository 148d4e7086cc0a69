"""Figures of the performance page: speed, cycle time before and after, and what is achieved of the machine's limit."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import pandas as pd

from reports.figures import paint, phases, style
from reports.figures.intervals import BY, INTERVAL, over_rounds
from reports.figures.spec import Material, Spec
from reports.figures.style import Looks
from reports.results.rivals import is_automatic
from reports.results.roles import SUBJECT
from reports.results.settings import with_settings
from reports.text import number

BEFORE, AFTER = "before", "after"
LIMIT_TARGET = 75.0
_MOST_PANELS = 6


def _by_setting(column: str, scale: float, material: Material) -> pd.DataFrame:
    """Medians of a column by setting (model, stored dtype, budget): of the largest comparison of systems on each."""
    if material.records.empty:
        return pd.DataFrame(columns=["kind"])
    records = with_settings(material.finished)
    records = records[records[column].notna() & (records["budget"] != "")]
    largest: dict[tuple[str, str, str], pd.DataFrame] = {}
    for (model, stored, budget, _), part in records.groupby(["model", "stored", "budget", "workload"]):
        setting = (str(model), str(stored), str(budget))
        if part["system"].nunique() > 1 and len(part) > len(largest.get(setting, ())):
            largest[setting] = part
    order = sorted(largest, key=lambda s: (s[0], s[1] != "float32", s[2]))[:_MOST_PANELS]
    parts = [largest[setting].assign(setting=", ".join(setting)) for setting in order]
    if not parts:
        return pd.DataFrame(columns=["kind"])
    return pd.concat([over_rounds(part, column, scale, by=("setting", *BY)) for part in parts], ignore_index=True)


def _panels(column: str, label: str, top: float | None, data: pd.DataFrame, looks: Looks) -> Any:
    """A panel for each setting, a line for each system."""
    settings = list(dict.fromkeys(data["setting"]))
    figure, grid = paint.panels(len(settings), 2, 3.0 if len(settings) > 1 else 3.7, sharey=True)
    handles = []
    for axes, setting in zip(grid, settings, strict=True):
        part = data[data["setting"] == setting]
        handles += paint.by_batch(axes, part, column, looks)
        axes.set_title(setting.replace(", ", "\n", 1) if len(settings) > 1 else setting)
        paint.value_axis(axes, data, column, label, top=top, may_log=top is None)
        if axes.get_subplotspec().colspan.start:
            axes.set_ylabel("")
        if top is not None:
            axes.axhline(LIMIT_TARGET, color=style.INK, linewidth=1.4, linestyle=(0, (1, 1)))
    paint.legend(figure, handles)
    return figure


def _describe(column: str, title: str, data: pd.DataFrame) -> str:
    """Which system is highest at which batch sizes; every value is in the CSV."""
    best = data.loc[data.groupby(["setting", "batch_size"], sort=False)[column].idxmax()]
    parts = [
        f"{setting}: {system} at batch {', '.join(map(str, rows['batch_size']))} ({number(rows[column].iloc[-1])})"
        for (setting, system), rows in best.groupby(["setting", "title"], sort=False)
    ]
    return f"{title}, highest by setting, with the last value. {'; '.join(parts)}."


def _cycle_data(material: Material) -> pd.DataFrame:
    """Phases of the paper's draft on torch's kernels, and of the automatic setting, in the first workload with both."""
    empty = pd.DataFrame(columns=["kind"])
    if material.records.empty:
        return empty
    done = material.finished
    torch_only = [json.loads(options).get("kernels") == "torch" for options in done["options"]]
    earlier = done[(done["system"] == SUBJECT) & pd.Series(torch_only, index=done.index, dtype=bool)]
    later = done[is_automatic(done)]
    for workload in earlier["workload"].unique():
        pair = [(BEFORE, earlier), (AFTER, later)]
        parts = [rows[rows["workload"] == workload].assign(title=title) for title, rows in pair]
        if all(len(part) for part in parts):
            return phases.split(pd.concat(parts))
    return empty


_spec = partial(Spec, needs="records of the suite performance", command="specmoe-bench run performance", alt=str)
SPECS = (
    _spec(
        id="performance-speed",
        place=("performance", 20),
        title="Decode speed by batch size",
        question="Which system decodes most tokens per second in the same memory?",
        caption=INTERVAL,
        data=partial(_by_setting, "decode_tok_s", 1.0),
        paint=partial(_panels, "decode_tok_s", "decode tok/s", None),
        alt=partial(_describe, "decode_tok_s", "Decode tok/s by batch size"),
    ),
    _spec(
        id="performance-cycle",
        place=("performance", 30),
        title="Decode time before and after",
        question="Where does the time of a cycle go?",
        caption="Before: torch's kernels, no prefetch, the paper's pinned draft. After: the automatic setting. "
        "Decode time over all tokens of the batch; whiskers are 95 % intervals of the total.",
        data=_cycle_data,
        paint=phases.paint_bars,
        alt=phases.describe,
    ),
    _spec(
        id="performance-limit",
        place=("performance", 40),
        title="Achieved share of the machine's limit",
        question="How near is each system to what link and memory allow for the bytes that it moves and reads?",
        caption="The limit is the larger of link bytes over the link's rate and weight bytes over the memory's read "
        f"rate. Dotted: the target. {INTERVAL}",
        data=partial(_by_setting, "achieved_over_limit", 100.0),
        paint=partial(_panels, "achieved_over_limit", "least time ÷ time, %", 105.0),
        alt=partial(_describe, "achieved_over_limit", "Achieved share of the limit in %"),
    ),
)
