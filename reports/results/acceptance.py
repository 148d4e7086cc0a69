"""Acceptance by draft position, from the raw repetitions."""

from __future__ import annotations

from itertools import zip_longest

import pandas as pd

from reports.results.load import finished

COLUMNS = ["kind", "title", "system", "batch_size", "position", "drafted", "accepted", "accepted_share"]


def by_position(frame: pd.DataFrame) -> pd.DataFrame:
    """Sums of accepted over drafted tokens of one workload, over repetitions and rounds.

    One row per kind, title, batch size and position (1 is drafted first); empty if nothing was drafted.
    """
    rows = []
    for (kind, title, system, batch), part in finished(frame).groupby(
        ["kind", "title", "system", "batch_size"], sort=False
    ):
        drafted, accepted = _sums(part, "drafted_by_position"), _sums(part, "accepted_by_position")
        for position, (tried, kept) in enumerate(zip_longest(drafted, accepted, fillvalue=0), start=1):
            if tried:
                rows.append((kind, title, system, int(batch), position, tried, kept, kept / tried))
    return pd.DataFrame(rows, columns=COLUMNS)


def _sums(part: pd.DataFrame, name: str) -> list[int]:
    lists = [r.get(name) or [] for record in part["record"] for r in record.get("repetitions") or []]
    return [sum(column) for column in zip_longest(*lists, fillvalue=0)]
