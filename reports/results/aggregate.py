"""Rounds into one row per system and batch, and ratios taken within a round."""

from __future__ import annotations

from typing import Any

import pandas as pd

from reports.results.metrics import METRICS
from reports.results.stats import Ratio, bootstrap, geometric_mean, stability

REFERENCE = "on-demand"
SUBJECT = "specmoe"
KINDS = ("measured", "emulated", "oracle", "projected")

_GROUP = ["workload", "kind", "title", "batch_size"]
_PAIR = ["run_id", "round"]  # one pass over all cells: what ran in it is compared
_RATIOS = {
    "speedup": "decode_tok_s",
    "link_ratio": "link_bytes_per_token",
    "kernel_ratio": "kernel_read_bytes_per_token",
}


def within_rounds(system: pd.DataFrame, reference: pd.DataFrame, column: str) -> Ratio:
    """``column`` of ``system`` over that of ``reference``, paired by run and round; both finished rows only."""
    return bootstrap(round_ratios(system, reference, column))


def round_ratios(system: pd.DataFrame, reference: pd.DataFrame, column: str) -> list[float]:
    """The ratio of every round in which both finished."""
    pairs = system.merge(reference, on=_PAIR, suffixes=("", "_reference"))
    below = pairs[f"{column}_reference"].to_numpy(dtype=float)
    above = pairs[column].to_numpy(dtype=float)
    usable = below > 0
    ratios: list[float] = (above[usable] / below[usable]).tolist()
    return ratios


def summarize(frame: pd.DataFrame, reference: str = REFERENCE) -> pd.DataFrame:
    """One row per workload, kind, title and batch.

    Medians over the finished rounds under the names of ``METRICS``, with ``_low`` and ``_high`` for the
    smallest and largest round; ``speedup``, ``link_ratio`` and ``kernel_ratio`` are ratios within a round to
    the system named ``reference`` (where the workload has none, to the first one its experiment names), with
    ``_low``, ``_high`` (95 % interval) and ``_n``.  ``status`` is ``ok`` if any round finished, ``reason`` says what
    happened in the others.  ``stability`` says whether the speed-ups of the rounds allow a conclusion
    (``reports.results.stats``); it is empty without a reference.
    """
    rows = []
    for (workload, kind, title, batch), part in frame.groupby(_GROUP, sort=False):
        finished = part[part["status"] == "ok"]
        row: dict[str, Any] = {"workload": workload, "kind": kind, "title": title, "batch_size": int(batch)}
        row |= _identity(part) | _spread(finished) | _outcome(part)
        other = _reference(frame, row, reference)
        row["reference"] = None if other is None else str(other["title"].iloc[0])
        row["reference_kind"] = None if other is None else str(other["kind"].iloc[0])
        row["reference_system"] = None if other is None else str(other["system"].iloc[0])
        row["is_reference"] = (row["reference"], row["reference_kind"]) == (title, kind)
        for name, column in _RATIOS.items():
            ratio = Ratio(None, None, None, 0) if other is None else within_rounds(finished, other, column)
            row |= {name: ratio.median, f"{name}_low": ratio.low, f"{name}_high": ratio.high, f"{name}_n": ratio.n}
        row["stability"] = _stability(finished, other)
        rows.append(row)
    return _ordered(pd.DataFrame(rows))


def _stability(finished: pd.DataFrame, reference: pd.DataFrame | None) -> str:
    if reference is None:
        return ""
    ratios = round_ratios(finished, reference, "decode_tok_s")
    return str(stability(ratios)) if ratios else ""


def mean_over_batches(frame: pd.DataFrame, rows: list[dict[str, Any]]) -> Ratio:
    """Geometric mean of the speed-ups of several rows of a summary, each against its own reference."""
    cells = []
    for row in rows:
        reference = _reference(frame, row, REFERENCE)
        same = frame["status"] == "ok"
        for name in _GROUP:
            same &= frame[name] == row[name]
        if reference is not None:
            cells.append(round_ratios(frame[same], reference, "decode_tok_s"))
    return geometric_mean(cells)


def first_named(workload: pd.DataFrame) -> str | None:
    """Title of what stands for a missing reference: the first system the experiment names (rounds are shuffled).

    Where different systems are compared it is the first that is not the subject; None if fewer than two are named.
    """
    systems = (workload["record"].iloc[0].get("config") or {}).get("systems") or []
    if len(systems) < 2:
        return None
    others = [entry for entry in systems if entry.get("system") != SUBJECT]
    first = (others or systems)[0]
    label = first.get("label") or first.get("system")
    titles = workload[workload["label"] == label]["title"]
    return str(titles.iloc[0]) if len(titles) else None


def ratio_of(row: dict[str, Any], name: str = "speedup") -> Ratio:
    """The ratio kept in a summary row."""
    keys = (name, f"{name}_low", f"{name}_high")
    median, low, high = (None if pd.isna(row[key]) else float(row[key]) for key in keys)
    return Ratio(median, low, high, int(row[f"{name}_n"]))


def _identity(part: pd.DataFrame) -> dict[str, Any]:
    first = part.iloc[0]
    about = ("system", "label", "cell_id", "grain", "lossless")
    names = (*about, "expert_budget_bytes", "process_limit_bytes", "limit_covers")
    enforced = all(value is True for value in part["limit_enforced"])
    return {name: first[name] for name in names} | {"enforced": enforced}


def _spread(finished: pd.DataFrame) -> dict[str, float]:
    out: dict[str, float] = {}
    memory = finished["peak_rss_bytes"].fillna(finished["limit_peak_bytes"].astype(float))
    for name in METRICS:
        values = memory if name == "peak_rss_bytes" else finished[name]
        out |= {name: values.median(), f"{name}_low": values.min(), f"{name}_high": values.max()}
    return out


def _outcome(part: pd.DataFrame) -> dict[str, Any]:
    lost = part[part["status"] != "ok"]
    reasons = [
        f"{status}: {' '.join(str(error or 'no reason given').split())}"
        for status, error in lost[["status", "error"]].drop_duplicates().itertuples(index=False)
    ]
    finished = len(part) - len(lost)
    return {
        "rounds": len(part),
        "rounds_ok": finished,
        "failed_attempts": int(part["failed_attempts"].sum()),
        "status": "ok" if finished else str(lost["status"].iloc[-1]),
        "reason": "; ".join(reasons),
    }


def _reference(frame: pd.DataFrame, row: dict[str, Any], system: str) -> pd.DataFrame | None:
    """Finished rounds of the reference for a row: of its own kind, or measured if the row is an oracle's.

    Of several, the one with the row's budget, else the first.  Where the workload never had the system, the first
    one its experiment names takes its place (an ablation's first setting).
    """
    workload = frame[frame["workload"] == row["workload"]]
    finished = workload[(workload["batch_size"] == row["batch_size"]) & (workload["status"] == "ok")]
    named = system in set(workload["system"])
    found = finished[finished["system"] == system] if named else finished[finished["title"] == first_named(workload)]
    kinds = [row["kind"], "measured"] if row["kind"] == "oracle" else [row["kind"]]
    for kind in kinds:
        ours = found[found["kind"] == kind]
        if len(ours):
            matched = ours[ours["expert_budget_bytes"] == row["expert_budget_bytes"]]
            chosen = ours[ours["title"] == row["title"]]
            chosen = chosen if len(chosen) else (matched if len(matched) else ours)
            return chosen[chosen["title"] == chosen["title"].iloc[0]]
    return None


def _ordered(summary: pd.DataFrame) -> pd.DataFrame:
    """Workloads and systems in order of first appearance, measured kinds first, batches ascending."""
    order = {
        "workload": {name: i for i, name in enumerate(summary["workload"].unique())},
        "kind": {name: i for i, name in enumerate(KINDS)},
        "title": {name: i for i, name in enumerate(summary["title"].unique())},
    }
    by = ["workload", "kind", "batch_size", "title"]
    return summary.sort_values(
        by, key=lambda column: column.map(order[column.name]) if column.name in order else column
    ).reset_index(drop=True)
