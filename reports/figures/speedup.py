"""Speed-up of SpecMoE over every rival of the same rounds."""

from __future__ import annotations

from itertools import product
from typing import Any

import pandas as pd
from matplotlib.lines import Line2D

from reports.figures import paint, style
from reports.figures.intervals import RATIO, columns
from reports.figures.spec import Material, Spec
from reports.figures.style import Looks
from reports.results.aggregate import within_rounds
from reports.results.roles import SUBJECT
from reports.text import number
from reports.wording.tables import system_text

MOST_SUBJECTS = 3  # of more configurations, those with the most tokens per second are drawn
_TICKS = (0.03, 0.1, 0.3, 1, 3, 10, 30, 100)
_COLUMNS = ["kind", "title", "system", "rival", "rival_kind", "batch_size", "speedup", "speedup_low", "speedup_high"]


def _data(material: Material) -> pd.DataFrame:
    finished = material.finished
    rows = []
    for kind, records in finished.groupby("kind", sort=False):
        if kind == "oracle":
            continue
        ours = records[records["system"] == SUBJECT]
        others = finished[(finished["system"] != SUBJECT) & finished["kind"].isin([kind, "oracle"])]
        titles = ours.groupby("title")["decode_tok_s"].median().sort_values(ascending=False).index[:MOST_SUBJECTS]
        rivals = list(dict.fromkeys(zip(others["title"], others["kind"], strict=True)))
        for title, (rival, rival_kind) in product(sorted(titles), rivals):
            mine = ours[ours["title"] == title]
            theirs = others[(others["title"] == rival) & (others["kind"] == rival_kind)]
            for batch in sorted(set(mine["batch_size"]) & set(theirs["batch_size"])):
                pair = [part[part["batch_size"] == batch] for part in (mine, theirs)]
                ratio = columns("speedup", within_rounds(pair[0], pair[1], "decode_tok_s"))
                rows.append(dict(zip(_COLUMNS, (kind, title, SUBJECT, rival, rival_kind, batch), strict=False)) | ratio)
    return pd.DataFrame(rows, columns=[*_COLUMNS, "n"]).dropna(subset=["speedup"]).reset_index(drop=True)


def _paint(data: pd.DataFrame, looks: Looks) -> Any:
    batches = sorted(data["batch_size"].unique())
    rivals = list(dict.fromkeys(zip(data["rival"], data["rival_kind"], strict=True)))
    height = 0.75 + 0.34 * len(rivals) + (0.5 if len(batches) <= 3 else 0.1)
    figure, grid = paint.panels(len(batches), 3, height, sharex=True, sharey=True)
    handles = []
    found = paint.lines(data)
    for axes, batch in zip(grid, batches, strict=True):
        axes.axvline(1.0, color=style.INK, linewidth=1.2, linestyle=(0, (1, 1)))
        for i, ((kind, _), part) in enumerate(found):
            here = part[part["batch_size"] == batch]
            places = [rivals.index(pair) + 0.2 * (i - (len(found) - 1) / 2) for pair in _pairs(here)]
            marks = style.line_marks(paint.look(looks, part.iloc[0]), kind)
            axes.errorbar(
                here["speedup"], places, xerr=paint.whiskers(here, "speedup"), capsize=2.5, **marks | {"linestyle": ""}
            )
            handles.append(Line2D([], [], label=system_text(part.iloc[0].to_dict()), **marks | {"linestyle": ""}))
        axes.set_xscale("log")
        axes.set(title=f"batch {batch}", xlabel="× rival's speed (log)")
        paint.title_axis(axes, [name if kind != "oracle" else f"{name} (oracle)" for name, kind in rivals])
    low, high = data[["speedup", "speedup_low"]].min().min(), data[["speedup", "speedup_high"]].max().max()
    ticks = [tick for tick in _TICKS if low / 1.3 <= tick <= high * 1.3 or tick == 1]
    for axes in grid:
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
    paint.legend(figure, handles)
    return figure


def _pairs(part: pd.DataFrame) -> list[tuple[str, str]]:
    return list(zip(part["rival"], part["rival_kind"], strict=True))


def _alt(data: pd.DataFrame) -> str:
    text = "Decode speed of SpecMoE over that of each rival."
    for row in data.to_dict("records"):
        text += f" {system_text(row)} over {row['rival']} at batch {row['batch_size']}: {number(row['speedup'])} times."
    return text


SPECS = (
    Spec(
        id="speedup",
        place=("speed", 30),
        title="Speed-up of SpecMoE over every other system",
        question="Which systems is SpecMoE faster than, and where is it slower?",
        caption=f"Right of the dotted line SpecMoE is faster. {RATIO}",
        needs="SpecMoE and another system in the same rounds",
        command="nox -s reproduce",
        data=_data,
        paint=_paint,
        alt=_alt,
    ),
)
