"""Figures over several experiments: models of low hotness, and the SSD tier."""

from __future__ import annotations

from typing import Any

import pandas as pd

from reports.figures import paint, style
from reports.figures.intervals import RATIO, columns
from reports.figures.spec import Material, Spec
from reports.figures.style import Looks
from reports.results.aggregate import mean_over_batches, ratio_of
from reports.results.roles import REFERENCE
from reports.results.tier import in_memory
from reports.text import number
from reports.wording.tables import system_text

_BY = ["kind", "title", "system", "batch_size"]


def _compared(material: Material) -> pd.DataFrame:
    """Rows of systems that have a speed-up over on-demand, with their model and link."""
    summary = material.summary
    reference = summary["is_reference"].astype(bool)
    keep = (summary["reference_system"] == REFERENCE).astype(bool) & ~reference & summary["speedup"].notna()
    facts = material.records.drop_duplicates("workload").set_index("workload")
    rows = summary[keep]
    return rows.assign(
        model=rows["workload"].map(facts["model"]),
        throttle=rows["workload"].map(facts["disk_read_limit_bytes_s"]),
        on_disk=~rows["workload"].map(facts["slow_tier"]).map(in_memory).astype(bool),
    )


def _by_model(material: Material) -> pd.DataFrame:
    """Full disk rate only; of several experiments on one model, the one with the most batch sizes."""
    rows = _compared(material)
    rows = rows[rows["throttle"].isna()]
    if rows.empty:
        return pd.DataFrame()
    kept = []
    for _, part in rows.groupby("model", sort=False):
        sizes = part.groupby("workload", sort=False)["batch_size"].nunique()
        kept.append(part[part["workload"] == sizes.idxmax()])
    if len(kept) < 2:
        return pd.DataFrame()
    wanted = ["model", *_BY, "speedup", "speedup_low", "speedup_high", "speedup_n"]
    return pd.concat(kept)[wanted].rename(columns={"speedup_n": "n"}).assign(status="ok").reset_index(drop=True)


def _paint_models(data: pd.DataFrame, looks: Looks) -> Any:
    models = list(dict.fromkeys(data["model"]))
    figure, grid = paint.panels(len(models), 2, 2.7, sharey=True)
    handles = []
    for axes, model in zip(grid, models, strict=True):
        handles += paint.by_batch(axes, data[data["model"] == model], "speedup", looks)
        axes.axhline(1.0, color=style.INK, linewidth=1.2, linestyle=(0, (1, 1)))
        axes.set_title(model)
    for axes in grid[::2]:
        axes.set_ylabel("decode speed ÷ on-demand")
    grid[0].set_ylim(0, 1.1 * data[["speedup", "speedup_high"]].max().max())
    paint.legend(figure, handles)
    return figure


def _alt_models(data: pd.DataFrame) -> str:
    parts = [f"{model}: {paint.describe(part, 'speedup', 'times on-demand')}" for model, part in data.groupby("model")]
    return f"Speed-up over on-demand by model and batch. {' '.join(parts)}"


def _by_link(material: Material) -> pd.DataFrame:
    """Mean speed-up over batch sizes for every system, on the full disk rate and on a slower one."""
    rows = _compared(material)
    out = []
    rows = rows[rows["on_disk"].astype(bool)]
    for (workload, model, kind, title, system), part in rows.groupby(
        ["workload", "model", "kind", "title", "system"], sort=False
    ):
        cells = part.to_dict("records")
        mean = mean_over_batches(material.records, cells) if len(cells) > 1 else ratio_of(cells[0])
        throttle = part["throttle"].iloc[0]
        link = "full disk rate" if pd.isna(throttle) else f"disk limited to {throttle / 1e9:.3g} GB/s"
        batches = ", ".join(str(row["batch_size"]) for row in cells)
        group = f"{model}, {link}, mean over batch {batches}"
        row = {"workload": workload, "group": group, "kind": kind, "title": title, "system": system}
        out.append(row | columns("speedup", mean))
    return pd.DataFrame(out).drop(columns="workload") if out else pd.DataFrame()


def _paint_links(data: pd.DataFrame, looks: Looks) -> Any:
    groups = list(dict.fromkeys(data["group"]))
    most = data.groupby("group").size().max()
    figure, grid = paint.panels(len(groups), 1, 0.8 + 0.28 * most, sharex=True)
    for axes, group in zip(grid, groups, strict=True):
        part = data[data["group"] == group].reset_index(drop=True)
        for y, row in part.iterrows():
            marks = style.line_marks(paint.look(looks, row), row["kind"]) | {"linestyle": ""}
            one = part.iloc[[y]]
            axes.errorbar(one["speedup"], [y], xerr=paint.whiskers(one, "speedup"), capsize=2.5, **marks)
        axes.axvline(1.0, color=style.INK, linewidth=1.2, linestyle=(0, (1, 1)))
        paint.title_axis(axes, [system_text(row) for row in part.to_dict("records")])
        axes.set_title(group)
    grid[0].set_xlim(0, 1.08 * data[["speedup", "speedup_high"]].max().max())
    grid[-1].set_xlabel("decode speed ÷ on-demand, geometric mean")
    return figure


def _alt_links(data: pd.DataFrame) -> str:
    parts = [f"{row['group']}: {system_text(row)} {number(row['speedup'])}" for row in data.to_dict("records")]
    return f"Mean speed-up over on-demand where experts come from disk. {'; '.join(parts)}."


SPECS = (
    Spec(
        id="low_hotness",
        place=("across", 10),
        title="Speed-up on models with many and with few experts",
        question="Does the speed-up hold where routing is less skewed?",
        caption=f"Dotted: speed of on-demand. {RATIO}",
        needs="on-demand and another system on two or more models",
        command="nox -s reproduce -- full",
        data=_by_model,
        paint=_paint_models,
        alt=_alt_models,
    ),
    Spec(
        id="ssd_tier",
        place=("across", 20),
        title="Speed-up with experts on disk",
        question="How large is the speed-up with experts on disk, and on a slower disk?",
        caption="Geometric mean over batch sizes of the median speed-up, whiskers its bootstrap 95 % interval. Dotted: "
        "speed of on-demand. A disk whose rate the kernel limits is labelled emulated.",
        needs="on-demand and another system with experts on disk",
        command="nox -s reproduce -- full",
        data=_by_link,
        paint=_paint_links,
        alt=_alt_links,
    ),
)
