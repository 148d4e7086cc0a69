"""The full record of each cell, with its configuration and raw values, as JSON text."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pandas as pd

_HIDDEN = ("cell", "config", "environment", "schema_version", "cell_id")  # shown once per cell


@dataclass(frozen=True)
class Detail:
    """One cell over its rounds."""

    name: str
    status: str
    cell: str
    config: str
    rounds: str


def details(frame: pd.DataFrame) -> list[Detail]:
    """One entry per cell, in the order of the records."""
    out = []
    for (kind, title, batch, cell_id), part in frame.groupby(["kind", "title", "batch_size", "cell_id"], sort=False):
        records = list(part["record"])
        rounds = [_round({key: value for key, value in record.items() if key not in _HIDDEN}) for record in records]
        name = f"{title}, batch {batch}, cell {cell_id}" + (f" ({kind})" if kind != "measured" else "")
        status = ", ".join(f"{n} {status}" for status, n in part["status"].value_counts().items())
        config = records[-1].get("config") or {}
        out.append(Detail(name, status, _json(records[-1]["cell"]), _json(config), _json(rounds)))
    return out


def _round(record: dict[str, Any]) -> dict[str, Any]:
    """The record with one line for each list of cycles or arrivals, which is five times shorter."""
    return record | {"repetitions": [_repetition(repetition) for repetition in record.get("repetitions", [])]}


def _repetition(repetition: dict[str, Any]) -> dict[str, Any]:
    short: dict[str, Any] = {}
    if cycles := repetition.get("cycles"):
        short["cycles"] = _columns(cycles)
    if arrivals := repetition.get("arrivals_s"):
        short["arrivals_s"] = [json.dumps(row) for row in arrivals]
    return repetition | short


def _columns(cycles: list[dict[str, Any]]) -> dict[str, str]:
    names = list(dict.fromkeys(name for cycle in cycles for name in cycle))
    return {name: json.dumps([cycle.get(name) for cycle in cycles], ensure_ascii=False) for name in names}


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False)
