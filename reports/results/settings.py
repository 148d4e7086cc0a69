"""What a performance record was measured on: the dtype that weights are stored in, the budget as configured."""

from __future__ import annotations

from typing import Any

import pandas as pd

FILL = "fill"
"""The budget of a system that takes what the process limit leaves."""


def stored_dtype(record: dict[str, Any]) -> str:
    """The dtype of the experts in the store; that of the computation where the record names no other."""
    return str(record["cell"].get("stored_dtype") or record["cell"]["dtype"])


def budget_text(record: dict[str, Any]) -> str:
    """The experiment's expert budget as written, such as ``25%``; empty where it has several or none is recorded.

    ``fill`` where a system of the experiment fills the process limit: then all are compared under that limit.
    """
    config = record.get("config") or {}
    if any(entry.get("expert_budget") == FILL for entry in config.get("systems") or []):
        return FILL
    budgets = config.get("expert_budget")
    known = budgets if isinstance(budgets, list) else [budgets]
    return str(known[0]).replace(" ", "") if len(known) == 1 and known[0] is not None else ""


def with_settings(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows with the columns ``stored`` and ``budget``."""
    records = list(frame["record"]) if len(frame) else []
    return frame.assign(stored=[stored_dtype(r) for r in records], budget=[budget_text(r) for r in records])
