"""The table of latencies as users know them, beside the result table of a workload."""

from __future__ import annotations

import pandas as pd

from reports.results.latency import PERCENTS
from reports.results.load import finished
from reports.results.roles import Row
from reports.text import NONE, number
from reports.wording.tables import Table, TableCell, system_text

_SHOWN = {"ttft": ("TTFT", "s", 1.0), "itl": ("between tokens", "ms", 1e3), "e2e": ("end to end", "s", 1.0)}
COLUMNS = {
    f"{metric}_p{percent}_s": (f"{title} p{percent} {unit}", factor)
    for metric, (title, unit, factor) in _SHOWN.items()
    for percent in PERCENTS
}
NOTE = (
    "Medians over rounds of each round's percentile: time to first token and end to end over the rows of a batch, "
    "between tokens over the tokens of all rows. Tokens that one verification accepts arrive together, 0 ms apart."
)


def tables(summary: pd.DataFrame) -> list[Table]:
    """One table of the rows of a workload whose tokens were timed; none without any."""
    rows = [row for row in finished(summary).to_dict("records") if any(not pd.isna(row[name]) for name in COLUMNS)]
    if not rows:
        return []
    headers = ["system", "batch", *(header for header, _ in COLUMNS.values()), "accepted length"]
    return [Table("latency", "Latency: p50, p95 and p99", headers, [_cells(row) for row in rows], NOTE)]


def _cells(row: Row) -> list[TableCell]:
    name, batch = system_text(row), int(row["batch_size"])
    figures = [_cell(row[column], factor) for column, (_, factor) in COLUMNS.items()]
    accepted = _cell(row["accepted_length"], 1.0)
    return [TableCell(name, name), TableCell(str(batch), float(batch)), *figures, accepted]


def _cell(value: float, factor: float) -> TableCell:
    return TableCell(NONE, None) if pd.isna(value) else TableCell(number(value * factor), value * factor)
