"""Where decode time goes: drafting, verifying, waiting for the link."""

from __future__ import annotations

from typing import Any

import pandas as pd

from reports.figures import paint, style
from reports.figures.intervals import columns, decoded_tokens, median_of, repetitions
from reports.figures.spec import Material, Spec
from reports.figures.style import Looks
from reports.wording.tables import splits_text, system_text

_NAMES = {"draft": "draft", "verify": "verify", "link_wait": "wait for link", "refresh": "refresh", "python": "other"}
_WHOLE = "not split"
_COLUMNS = ["kind", "title", "system", "batch_size", "phase", "ms_per_token", "total_ms"]


def split(finished: pd.DataFrame) -> pd.DataFrame:
    """Milliseconds per token of each phase and in total, by title and batch size; empty if none was split."""
    rows = []
    by = ["kind", "title", "system", "batch_size"]
    for names, part in finished.groupby(by, sort=False):
        found: dict[str, list[float]] = {}
        totals = []
        for record in part["record"]:
            for repetition in repetitions(record):
                tokens = decoded_tokens(record, repetition)
                totals.append(1e3 * repetition["decode_s"] / tokens)
                known = repetition.get("phases_s") or {}
                split = {text: known[name] for name, text in _NAMES.items() if name in known}
                for text, seconds in (split or {_WHOLE: repetition["decode_s"]}).items():
                    found.setdefault(text, []).append(1e3 * seconds / tokens)
        total = columns("total_ms", median_of(totals))
        medians = {text: float(pd.Series(values).median()) for text, values in found.items()}
        rows += [
            dict(zip(by, names, strict=True)) | {"phase": text, "ms_per_token": value} | total
            for text, value in medians.items()
        ]
    data = pd.DataFrame(rows, columns=[*_COLUMNS, "total_ms_low", "total_ms_high", "n"])
    is_split = data["phase"] != _WHOLE
    return data if is_split.any() else data.iloc[:0]


def _data(material: Material) -> pd.DataFrame:
    return split(material.finished)


def paint_bars(data: pd.DataFrame, looks: Looks) -> Any:
    """A panel for each batch size, a bar for each title."""
    batches = sorted(data["batch_size"].unique())
    most = max(part["title"].nunique() for _, part in data.groupby("batch_size"))
    figure, grid = paint.panels(len(batches), 1 if len(batches) < 4 else 2, 0.62 + 0.26 * most)
    for axes, batch in zip(grid, batches, strict=True):
        part = data[data["batch_size"] == batch].assign(
            title=[system_text(row) for row in data[data["batch_size"] == batch].to_dict("records")]
        )
        titles = list(dict.fromkeys(part["title"]))
        paint.stacked(axes, titles, part, "phase", "ms_per_token", style.PHASES)
        totals = part.drop_duplicates("title").set_index("title").loc[titles].reset_index()
        axes.errorbar(
            totals["total_ms"],
            range(len(titles)),
            xerr=paint.whiskers(totals, "total_ms"),
            fmt="none",
            ecolor=style.INK,
            elinewidth=1.2,
            capsize=2.5,
        )
        axes.set_title(f"batch {batch}")
        axes.set_xlim(0, 1.05 * totals[["total_ms", "total_ms_high"]].max().max())
    for axes in grid[-2:] if len(batches) > 3 else grid[-1:]:
        axes.set_xlabel("ms per token of the batch")
    shown = {name: look for name, look in style.PHASES.items() if name in set(data["phase"])}
    paint.legend(figure, paint.part_handles(shown))
    return figure


def describe(data: pd.DataFrame) -> str:
    """The bars in words."""
    return f"Milliseconds of decode time per token, by phase. {splits_text(data, 'phase', 'ms_per_token')}."


SPECS = (
    Spec(
        id="phases",
        place=("time", 10),
        title="Decode time by phase",
        question="How much of the time is spent on compute, and how much waiting for experts?",
        caption="Decode time divided by the tokens of the whole batch. Segments are medians of each phase, whiskers "
        "the 95 % interval of the total. Waiting for the link counts only where it blocks compute.",
        needs="finished cells of a system that measures its phases",
        command="nox -s reproduce",
        data=_data,
        paint=paint_bars,
        alt=describe,
    ),
)
