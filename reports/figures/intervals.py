"""Medians over rounds with their 95 % intervals, as rows to draw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from reports.results.stats import Ratio, bootstrap

BY = ("kind", "title", "system", "batch_size")
INTERVAL = "Points are medians over rounds, whiskers the bootstrap 95 % interval (none from one round)."
RATIO = "Points are medians of the ratio within a round, whiskers its bootstrap 95 % interval (none from one round)."


def median_of(values: Sequence[float]) -> Ratio:
    """Median and interval; rounds that all agree have an interval of no width."""
    known = [float(v) for v in values if v is not None and not pd.isna(v)]
    if len(known) > 1 and len(set(known)) == 1:
        return Ratio(known[0], known[0], known[0], len(known))
    return bootstrap(known)


def columns(name: str, ratio: Ratio, scale: float = 1.0) -> dict[str, Any]:
    """``name``, ``name_low`` and ``name_high`` in drawn units, and ``n``; NaN where there is none."""
    values = {name: ratio.median, f"{name}_low": ratio.low, f"{name}_high": ratio.high}
    return {key: float("nan") if v is None else v * scale for key, v in values.items()} | {"n": ratio.n}


def over_rounds(records: pd.DataFrame, value: str, scale: float = 1.0, by: Sequence[str] = BY) -> pd.DataFrame:
    """A row for every group of ``by``, failed cells included (NaN): median of ``value`` over finished rounds."""
    rows = []
    for names, part in records.groupby(list(by), sort=False):
        finished = part[part["status"] == "ok"]
        status = "ok" if len(finished) else str(part["status"].iloc[-1])
        row = dict(zip(by, names, strict=True)) | {"status": status}
        rows.append(row | columns(value, median_of(finished[value].tolist()), scale))
    frame = pd.DataFrame(rows, columns=[*by, "status", value, f"{value}_low", f"{value}_high", "n"])
    return frame.sort_values("batch_size", kind="stable").reset_index(drop=True) if "batch_size" in by else frame


def repetitions(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Raw repetitions of a finished record, else none."""
    return list(record.get("repetitions") or []) if record.get("status") == "ok" else []


def timed(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Repetitions of a finished record in which every token's arrival is known."""
    return [one for one in repetitions(record) if one.get("arrivals_s")]


def decoded_tokens(record: dict[str, Any], repetition: dict[str, Any]) -> int:
    """Tokens of the decode phase: the prefill gives every row its first."""
    return int(repetition["new_tokens"]) - int(record["cell"]["batch_size"])
