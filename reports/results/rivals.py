"""The automatic setting and what it has to beat: rivals of the same memory, compared within rounds.

The best rival of a cell is the one with the highest median speed; its ratio is taken round by round, never from the
fastest rival of each round.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd

from reports.results.aggregate import within_rounds
from reports.results.load import finished
from reports.results.roles import CACHE, REFERENCE, SUBJECT
from reports.results.stats import Ratio

SPEED = "decode_tok_s"
ON_OUR_ENGINE = (REFERENCE, CACHE)
"""Systems that run on our engine without drafting."""
_PLACE = ["workload", "kind", "batch_size", "expert_budget_bytes"]


@dataclass(frozen=True)
class Place:
    """The finished rounds of one setting, and those of all others of its workload, kind and batch size."""

    ours: pd.DataFrame
    others: pd.DataFrame

    @property
    def batch_size(self) -> int:
        return int(self.ours["batch_size"].iloc[0])

    @property
    def title(self) -> str:
        return str(self.ours["title"].iloc[0])

    @property
    def name(self) -> str:
        """Title, model, budget and batch size, for a message."""
        first = self.ours.iloc[0]
        budget = first["expert_budget_bytes"]
        memory = "" if pd.isna(budget) else f" with {budget / 1e6:.0f} MB"
        return f"{self.title}, {first['model']}{memory}"

    def of(self, *systems: str) -> pd.DataFrame:
        """The rounds of other systems with the budget of ours."""
        budget = self.ours["expert_budget_bytes"].iloc[0]
        same = self.others["expert_budget_bytes"] == budget
        same |= self.others["expert_budget_bytes"].isna() & pd.isna(budget)
        return self.others[same & self.others["system"].isin(systems)]

    def over(self, rivals: pd.DataFrame) -> Ratio:
        """Our speed over that of the fastest of ``rivals``, within rounds; empty without rivals."""
        return within_rounds(self.ours, fastest(rivals), SPEED)


def fastest(rows: pd.DataFrame) -> pd.DataFrame:
    """The rounds of the title with the highest median speed; no rounds for none."""
    if rows.empty:
        return rows
    return rows[rows["title"] == rows.groupby("title")[SPEED].median().idxmax()]


def is_automatic(frame: pd.DataFrame) -> pd.Series:
    """Which rows are of SpecMoE with ``controller: auto`` among its options."""
    chosen = [json.loads(options).get("controller") == "auto" for options in frame["options"]]
    return (frame["system"] == SUBJECT) & pd.Series(chosen, index=frame.index, dtype=bool)


def automatic_places(frame: pd.DataFrame) -> Iterator[Place]:
    """Every cell of the automatic setting that has a result, beside the other results of its place."""
    done = finished(frame)
    ours = done[is_automatic(done)]
    for _, cell in ours.groupby([*_PLACE, "title"], sort=False, dropna=False):
        first = cell.iloc[0]
        here = pd.Series(True, index=done.index)
        for name in ("workload", "kind", "batch_size"):
            here &= done[name] == first[name]
        yield Place(cell, done[here & ~done.index.isin(cell.index)])
