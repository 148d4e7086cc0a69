"""Summary of the rounds: one row per system and batch size, with ratios taken within a round."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from reports.results.fidelity import worst
from reports.results.load import finished
from reports.results.metrics import METRICS
from reports.results.roles import KINDS, REFERENCE, named_reference
from reports.results.stats import Ratio, Stability, bootstrap, geometric_mean, outliers, stability

_GROUP = ["workload", "kind", "title", "batch_size"]
_PAIR = ["run_id", "round"]  # systems are compared within one pass over all cells
_RATIOS = {
    "speedup": "decode_tok_s",
    "link_ratio": "link_bytes_per_token",
    "kernel_ratio": "kernel_read_bytes_per_token",
}


def within_rounds(system: pd.DataFrame, reference: pd.DataFrame, column: str) -> Ratio:
    """``column`` of ``system`` over that of ``reference``, paired by run and round; both hold finished rows."""
    return bootstrap(round_ratios(system, reference, column))


def round_ratios(system: pd.DataFrame, reference: pd.DataFrame, column: str) -> list[float]:
    """One ratio for every round in which both finished with finite values and the reference's is positive."""
    return list(ratios_by_round(system, reference, column)["ratio"])


def ratios_by_round(system: pd.DataFrame, reference: pd.DataFrame, column: str) -> pd.DataFrame:
    """The same with columns ``run_id``, ``round`` and ``ratio``."""
    needed = [*_PAIR, column]
    pairs = system[needed].merge(reference[needed], on=_PAIR, suffixes=("", "_reference"))
    below = pairs[f"{column}_reference"].to_numpy(dtype=float)
    above = pairs[column].to_numpy(dtype=float)
    usable = (below > 0) & np.isfinite(below) & np.isfinite(above)
    return pairs[_PAIR][usable].assign(ratio=above[usable] / below[usable])


def summarize(frame: pd.DataFrame, reference: str = REFERENCE) -> pd.DataFrame:
    """One row per workload, kind, title and batch.

    Columns named in ``METRICS`` are medians over the finished rounds, with ``_low`` and ``_high`` for the smallest and
    largest round. ``speedup``, ``link_ratio`` and ``kernel_ratio`` are ratios within a round to the system
    ``reference`` (if the workload lacks it, to the first one its experiment names), with ``_low`` and ``_high`` (95 %
    interval) and ``_n`` (rounds). ``status`` is ``ok`` if any round finished; ``reason`` explains the other rounds.
    ``stability`` states whether the speed-ups allow a conclusion (``reports.results.stats``); empty without reference.
    ``unsteady`` tells that their spread between rounds, rather than the number of rounds, does not, and ``outliers``
    names the rounds that stand out, as text.
    """
    rows = []
    for (workload, kind, title, batch), part in frame.groupby(_GROUP, sort=False):
        ours = finished(part)
        row: dict[str, Any] = {"workload": workload, "kind": kind, "title": title, "batch_size": int(batch)}
        row |= _identity(part) | _spread(ours) | _outcome(part)
        other = _reference(frame, row, reference)
        row["reference"] = None if other is None else str(other["title"].iloc[0])
        row["reference_kind"] = None if other is None else str(other["kind"].iloc[0])
        row["reference_system"] = None if other is None else str(other["system"].iloc[0])
        row["is_reference"] = (row["reference"], row["reference_kind"]) == (title, kind)
        for name, column in _RATIOS.items():
            ratio = Ratio(None, None, None, 0) if other is None else within_rounds(ours, other, column)
            row |= {name: ratio.median, f"{name}_low": ratio.low, f"{name}_high": ratio.high, f"{name}_n": ratio.n}
        steady = None if other is None else stability_of(ours, other)
        row["stability"], row["unsteady"] = str(steady or ""), steady is not None and steady.unsteady
        row["outliers"] = [] if other is None else _outliers(ours, other)
        rows.append(row)
    return _ordered(pd.DataFrame(rows))


def _outliers(ours: pd.DataFrame, reference: pd.DataFrame) -> list[str]:
    found = ratios_by_round(ours, reference, "decode_tok_s").reset_index(drop=True)
    far = found.iloc[outliers(found["ratio"].tolist())]
    return [f"round {number + 1}: {ratio:.2f}×" for number, ratio in zip(far["round"], far["ratio"], strict=True)]


def stability_of(ours: pd.DataFrame, reference: pd.DataFrame) -> Stability | None:
    """Whether the speed-ups of finished rounds allow a conclusion; None without a common round."""
    ratios = round_ratios(ours, reference, "decode_tok_s")
    return stability(ratios) if ratios else None


def mean_over_batches(frame: pd.DataFrame, rows: list[dict[str, Any]]) -> Ratio:
    """Geometric mean of the speed-ups of several summary rows, each to its own reference."""
    cells = []
    for row in rows:
        reference = _reference(frame, row, REFERENCE)
        if reference is not None:
            cells.append(round_ratios(rounds_of(frame, row), reference, "decode_tok_s"))
    return geometric_mean(cells)


def rounds_of(frame: pd.DataFrame, row: Mapping[str, Any]) -> pd.DataFrame:
    """The finished rounds that a summary row is made of."""
    same = frame["status"] == "ok"
    for name in _GROUP:
        same &= frame[name] == row[name]
    return frame[same]


def first_named(workload: pd.DataFrame) -> str | None:
    """Title of the system that substitutes a missing reference (``roles.named_reference``), or None."""
    label = named_reference((workload["record"].iloc[0].get("config") or {}).get("systems") or [])
    titles = workload[workload["label"] == label]["title"]
    return str(titles.iloc[0]) if len(titles) else None


def ratio_of(row: dict[str, Any], name: str = "speedup") -> Ratio:
    """The ratio of this name in a summary row."""
    keys = (name, f"{name}_low", f"{name}_high")
    median, low, high = (None if pd.isna(row[key]) else float(row[key]) for key in keys)
    return Ratio(median, low, high, int(row[f"{name}_n"]))


def _identity(part: pd.DataFrame) -> dict[str, Any]:
    first = part.iloc[0]
    about = ("system", "label", "cell_id", "grain", "lossless")
    names = (*about, "expert_budget_bytes", "process_limit_bytes", "limit_covers", "new_tokens", "first_tokens")
    enforced = all(value is True for value in part["limit_enforced"])
    return {name: first[name] for name in names} | {"enforced": enforced}


def _spread(ours: pd.DataFrame) -> dict[str, float]:
    out: dict[str, float] = {}
    memory = ours["peak_rss_bytes"].fillna(ours["limit_peak_bytes"].astype(float))
    for name in METRICS:
        values = memory if name == "peak_rss_bytes" else ours[name]
        out |= {name: values.median(), f"{name}_low": values.min(), f"{name}_high": values.max()}
    return out


def _outcome(part: pd.DataFrame) -> dict[str, Any]:
    lost = part[part["status"] != "ok"]
    reasons = [
        f"{status}: {' '.join(str(error or 'no reason given').split())}"
        for status, error in lost[["status", "error"]].drop_duplicates().itertuples(index=False)
    ]
    done = len(part) - len(lost)
    return {
        "rounds": len(part),
        "rounds_ok": done,
        "failed_attempts": int(part["failed_attempts"].sum()),
        "status": "ok" if done else str(lost["status"].iloc[-1]),
        "reason": "; ".join(reasons),
        "fidelity_kind": worst(part["fidelity_kind"]),
    }


def _reference(frame: pd.DataFrame, row: dict[str, Any], system: str) -> pd.DataFrame | None:
    """Finished rounds of the reference for a row: of its own kind, or those that ran if the row is an oracle's.

    Of several references, the one with the row's budget is taken, else the first. In a workload without the
    reference system, the first system that its experiment names replaces it (an ablation's first setting).
    """
    workload = frame["workload"] == row["workload"]
    named = system in set(frame.loc[workload, "system"])
    theirs = frame["system"] == system if named else frame["title"] == first_named(frame[workload])
    found = finished(frame[workload & theirs & (frame["batch_size"] == row["batch_size"])])
    kinds = [row["kind"], "measured", "emulated"] if row["kind"] == "oracle" else [row["kind"]]
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
