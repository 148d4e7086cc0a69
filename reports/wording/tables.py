"""Result tables: one per kind of result, with a row for every cell, failed ones included."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from reports import text
from reports.results.aggregate import ratio_of
from reports.results.metrics import METRICS, Metric
from reports.results.roles import KINDS, Row
from reports.text import NONE, number

Key = float | str | None

KIND_TITLES = {
    "measured": "Measured",
    "emulated": "Emulated: run on a link paced to a stated rate",
    "oracle": "Oracle: a bound that no real system reaches",
    "projected": "Projected: computed from a hardware model, not run",
}


@dataclass(frozen=True)
class Column:
    """A column: its header with units, the text of a cell, and the key that a page sorts by.

    A ``rare`` column is left out where no row has a key.
    """

    header: str
    text: Callable[[Row], str]
    key: Callable[[Row], Key]
    rare: bool = False


@dataclass(frozen=True)
class TableCell:
    """Text and sort key of one cell."""

    text: str
    key: Key


def cell(text: str) -> TableCell:
    """A cell from its text: sorted by the number that it begins with, else as text."""
    found = re.match(r"[(≈ ]*([+\-−]?\d[\d,]*(?:\.\d+)?)(?![\d.]*[A-Za-z(:])", text)
    if text == NONE or not text:
        return TableCell(text, None)
    return TableCell(text, float(found[1].replace(",", "").replace("−", "-")) if found else text)


@dataclass(frozen=True)
class Table:
    """A table of figures of one kind; ``note`` is a remark below it."""

    kind: str
    caption: str
    headers: list[str]
    rows: list[list[TableCell]]
    note: str = ""


def splits_text(data: pd.DataFrame, part: str, value: str) -> str:
    """What a stacked bar shows, as text: each ``part`` with its ``value``, by ``title`` and ``batch_size``."""
    texts = []
    for (title, batch), rows in data.groupby(["title", "batch_size"], sort=False):
        split = ", ".join(f"{row[part]} {number(row[value])}" for row in rows.to_dict("records"))
        texts.append(f"{title} at batch {batch}: {split}")
    return "; ".join(texts)


def system_text(row: Row) -> str:
    """The title, with its kind unless measured."""
    return str(row["title"]) if row["kind"] == "measured" else f"{row['title']} ({row['kind']})"


def _ratio_text(row: Row) -> str:
    if row["is_reference"] and row["status"] == "ok":
        return "1 (reference)"
    shown = str(ratio_of(row))
    foreign = shown != NONE and row["reference_kind"] != row["kind"]
    return f"{shown} of {row['reference_kind']} {row['reference']}" if foreign else shown


def notes(row: Row) -> str:
    """What a reader must know of a row: why figures are missing, and what makes it less comparable."""
    parts = []
    if row["rounds_ok"] < row["rounds"]:
        done = f" ({row['rounds_ok']} of {row['rounds']} rounds finished)" if row["rounds_ok"] else ""
        parts.append(_short(row["reason"]) + done)
    if row["failed_attempts"]:
        parts.append(f"after {row['failed_attempts']} failed attempts")
    if not row["enforced"] and row["kind"] != "projected":
        parts.append("limit not enforced")
    if not pd.isna(row["first_tokens"]):
        parts.append(f"first {int(row['first_tokens'])} of {row['new_tokens']} tokens")
    if row["budget_differs"]:
        parts.append(f"budget {number(row['expert_budget_bytes'] / 1e6)} MB")
    if row["fidelity_kind"] == "tie":
        parts.append("other tokens at ties only")
    if row["lossless"] is False:
        parts.append("lossy by design")
    return "; ".join(parts)


def _short(text: str, limit: int = 160) -> str:
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"


def _column(name: str, metric: Metric) -> Column:
    def value(row: Row) -> float | None:
        return None if pd.isna(row[name]) else float(row[name])

    def key(row: Row) -> Key:
        return None if (known := value(row)) is None else known / metric.scale

    return Column(metric.header or name, lambda row: metric.shown(value(row)), key, metric.rare)


_SHOWN = {name: _column(name, metric) for name, metric in METRICS.items() if metric.header}
COLUMNS = (
    Column("system", system_text, system_text),
    Column("batch", lambda row: str(row["batch_size"]), lambda row: float(row["batch_size"])),
    _SHOWN.pop("decode_tok_s"),
    Column("ratio to reference [95 % CI]", _ratio_text, lambda row: ratio_of(row).median),
    *_SHOWN.values(),
    Column("rounds", lambda row: f"n={row['rounds_ok']}", lambda row: float(row["rounds_ok"])),
    Column("notes", notes, notes),
)


def tables(summary: pd.DataFrame) -> list[Table]:
    """One table per kind in a summary of one workload, measured first."""
    rows = mark_budgets(summary.to_dict("records"))
    out = []
    for kind in [*KINDS, *sorted(set(summary["kind"]) - set(KINDS))]:
        ours = [row for row in rows if row["kind"] == kind]
        if ours:
            columns = [c for c in COLUMNS if not c.rare or any(c.key(row) is not None for row in ours)]
            cells = [[TableCell(column.text(row), column.key(row)) for column in columns] for row in ours]
            out.append(Table(kind, KIND_TITLES.get(kind, kind), [column.header for column in columns], cells))
    return out


def mark_budgets(rows: list[Row]) -> list[Row]:
    """The rows with ``budget_differs``: whether the expert budget is not the most common one of the workload."""
    budgets = [int(row["expert_budget_bytes"]) for row in rows if not pd.isna(row["expert_budget_bytes"])]
    usual = max(sorted(set(budgets)), key=budgets.count) if budgets else None
    return [
        row | {"budget_differs": not pd.isna(row["expert_budget_bytes"]) and row["expert_budget_bytes"] != usual}
        for row in rows
    ]


def plain(table: Table) -> str:
    """The table for a terminal."""
    return text.plain(table.headers, _texts(table))


def markdown(table: Table) -> str:
    """The table in GitHub's markdown; columns of numbers are right-aligned."""
    keys = ([row[i].key for row in table.rows] for i in range(len(table.headers)))
    right = {i for i, column in enumerate(keys) if any(isinstance(key, int | float) for key in column)}
    return text.markdown(table.headers, _texts(table), right)


def plain_data(table: Table) -> dict[str, Any]:
    """The table for other programs: each cell as shown, and the number or text that it is sorted by."""
    rows = [
        {name: {"text": cell.text, "value": cell.key} for name, cell in zip(table.headers, row, strict=True)}
        for row in table.rows
    ]
    return {"kind": table.kind, "caption": table.caption, "columns": table.headers, "rows": rows, "note": table.note}


def _texts(table: Table) -> list[list[str]]:
    return [[cell.text for cell in row] for row in table.rows]
