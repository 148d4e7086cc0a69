"""Outcome of prefetched bytes: useful, late or wasted."""

from __future__ import annotations

from typing import Any

import pandas as pd

from reports.figures import paint, style
from reports.figures.intervals import columns, decoded_tokens, median_of, repetitions
from reports.figures.spec import Material, Spec
from reports.figures.style import Looks
from reports.wording.tables import splits_text

_BY = ["kind", "title", "system", "batch_size"]
_OUTCOME_FIELDS = {"useful": "prefetch_useful_bytes", "late": "prefetch_late_bytes", "wasted": "prefetch_wasted_bytes"}


def _data(material: Material) -> pd.DataFrame:
    rows = []
    for names, part in material.finished.groupby(_BY, sort=False):
        found: dict[str, list[float]] = {name: [] for name in _OUTCOME_FIELDS}
        shares = []
        for record in part["record"]:
            for repetition in repetitions(record):
                if not repetition.get("prefetched_bytes"):
                    continue
                tokens = decoded_tokens(record, repetition)
                for name, field in _OUTCOME_FIELDS.items():
                    found[name].append((repetition.get(field) or 0) / tokens / 1e6)
                shares.append(100 * (repetition.get("prefetch_useful_bytes") or 0) / repetition["prefetched_bytes"])
        share = columns("useful_percent", median_of(shares))
        for name, values in found.items() if shares else ():
            value = float(pd.Series(values).median())
            rows.append(dict(zip(_BY, names, strict=True)) | {"outcome": name, "mb_per_token": value} | share)
    wanted = ["outcome", "mb_per_token", "useful_percent", "useful_percent_low", "useful_percent_high", "n"]
    return pd.DataFrame(rows, columns=[*_BY, *wanted])


def _paint(data: pd.DataFrame, looks: Looks) -> Any:
    batches = sorted(data["batch_size"].unique())
    most = max(part["title"].nunique() for _, part in data.groupby("batch_size"))
    figure, grid = paint.panels(len(batches), 1, 0.7 + 0.36 * most)
    for axes, batch in zip(grid, batches, strict=True):
        part = data[data["batch_size"] == batch]
        titles = list(dict.fromkeys(part["title"]))
        paint.stacked(axes, titles, part, "outcome", "mb_per_token", style.OUTCOMES)
        widest = part.groupby("title")["mb_per_token"].sum().max()
        for y, title in enumerate(titles):
            ours = part[part["title"] == title]
            first = ours.iloc[0]
            spread = (
                f" [{first['useful_percent_low']:.0f}, {first['useful_percent_high']:.0f}]" if first["n"] > 1 else ""
            )
            text = f"{first['useful_percent']:.0f} %{spread} useful"
            axes.text(ours["mb_per_token"].sum() + 0.015 * widest, y, text, va="center", fontsize=9.5, color=style.INK)
        axes.set_xlim(0, 1.42 * widest)
        axes.set_title(f"batch {batch}")
    grid[-1].set_xlabel("MB prefetched per token")
    paint.legend(figure, paint.part_handles(style.OUTCOMES))
    return figure


SPECS = (
    Spec(
        id="prefetch",
        place=("drafting", 50),
        title="Outcome of prefetched bytes",
        question="How much of what is prefetched is used?",
        caption="Useful: needed and there in time. Late: needed, but the layer had to wait. Wasted: not needed. "
        "Medians over rounds; the useful share is written beside each bar, with its bootstrap 95 % interval.",
        needs="SpecMoE with prefetch: draft",
        command="specmoe-bench run ablation-prefetch --report",
        data=_data,
        paint=_paint,
        alt=lambda data: f"Prefetched megabytes by outcome. {splits_text(data, 'outcome', 'mb_per_token')}.",
    ),
)
