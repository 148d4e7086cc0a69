"""The README's figure: decode speed over on-demand loading, and over caching in the same memory at three budgets.

    python docs/figures/finding.py

writes ``finding.png`` and ``finding.csv``, the drawn numbers, beside this file.  Everything is computed from
committed records: ratios are taken within a round; marks are medians and bars 95 % bootstrap intervals of the rounds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import pandas as pd

from reports.figures import style
from reports.results.aggregate import within_rounds
from reports.results.load import load

FOLDER = Path(__file__).resolve().parent
RECORDS = FOLDER.parent / "records"

SYSTEMS = {  # label in full/quick.jsonl -> (label in the figure, colour, marker)
    "caching": ("caching, same memory", *style.KNOWN["caching"]),
    "caching LFU": ("caching, same memory, LFU", *style.KNOWN["caching-lfu"]),
    "caching 10%": ("caching, 10 % of the experts", *style.KNOWN["caching-10pct"]),
    "SpecMoE": ("SpecMoE, gamma 5", *style.KNOWN["specmoe"]),
    "SpecMoE controller": ("SpecMoE, controller", *style.KNOWN["specmoe-controller"]),
}
BUDGETS = {  # percent of the experts that fit -> (colour, marker)
    5: ("#08306B", "o"),
    20: ("#2171B5", "s"),
    60: ("#6BAED6", "D"),
}
DRAFT_LENGTH = "gamma = 2"  # the fixed setting drawn in the right panel
COLUMNS = ["panel", "line", "batch_size", "ratio", "ratio_low", "ratio_high", "n"]


def compute() -> pd.DataFrame:
    """One row per mark: panel ("on-demand" or "caching"), line, batch size, median ratio, its interval, rounds n."""
    quick = load([RECORDS / "full" / "quick.jsonl"])
    rows = [_rows(quick, title, "on-demand") | {"line": label} for title, (label, _, _) in SYSTEMS.items()]
    for percent in BUDGETS:
        grid = load([RECORDS / f"controller-large-{percent}.jsonl"])
        rows.append(_rows(grid, DRAFT_LENGTH, "caching LFU") | {"line": f"{percent} % resident"})
    return pd.concat([pd.DataFrame(row) for row in rows], ignore_index=True)[COLUMNS]


def _rows(records: pd.DataFrame, title: str, reference: str) -> dict[str, Any]:
    """Columns with the speed of one system over the reference, by batch size."""
    finished = records[records["status"] == "ok"]
    found: dict[str, Any] = {
        "panel": reference.removesuffix(" LFU"),
        "batch_size": sorted(finished["batch_size"].unique()),
    }
    same_batch = [finished[finished["batch_size"] == batch] for batch in found["batch_size"]]
    ratios = [
        within_rounds(cells[cells["title"] == title], cells[cells["title"] == reference], "decode_tok_s")
        for cells in same_batch
    ]
    names = {"ratio": "median", "ratio_low": "low", "ratio_high": "high", "n": "n"}
    return found | {column: [getattr(ratio, name) for ratio in ratios] for column, name in names.items()}


def paint(data: pd.DataFrame) -> Any:
    """The two panels."""
    style.setup()
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.9), layout="constrained", width_ratios=(1.15, 1))
    _panel(left, data[data["panel"] == "on-demand"], [look[1:] for look in SYSTEMS.values()])
    _panel(right, data[data["panel"] == "caching"], list(BUDGETS.values()))
    left.set(title="All systems, 25 % of the experts resident", ylabel="speed ÷ on-demand loading")
    right.set(title="SpecMoE (gamma 2) against caching", ylabel="speed ÷ LFU caching")
    return figure


def _panel(axes: Any, data: pd.DataFrame, looks: list[tuple[str, str]]) -> None:
    batches = sorted(data["batch_size"].unique())
    lines = list(data.groupby("line", sort=False))
    for i, ((line, part), (color, marker)) in enumerate(zip(lines, looks, strict=True)):
        places = [batches.index(batch) + 0.13 * (i - (len(lines) - 1) / 2) for batch in part["batch_size"]]
        interval = [part["ratio"] - part["ratio_low"], part["ratio_high"] - part["ratio"]]
        axes.errorbar(
            places, part["ratio"], yerr=interval, label=line, color=color, marker=marker, linestyle="", capsize=2.5
        )
    axes.axhline(1.0, color=style.INK, linewidth=1.2, linestyle=(0, (1, 1)))
    axes.set_xticks(range(len(batches)), [str(batch) for batch in batches])
    axes.set(xlabel="batch size (sequences)", ylim=(0, None))
    axes.grid(axis="x", visible=False)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2, columnspacing=1.2, handletextpad=0.2)


def main() -> None:
    """Write the figure and its data."""
    data = compute()
    data.to_csv(FOLDER / "finding.csv", index=False)
    paint(data).savefig(FOLDER / "finding.png")


if __name__ == "__main__":
    main()
