"""The result in sentences, worded by the figures: faster, slower, or not to be told apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from reports.aggregate import KINDS, REFERENCE, mean_over_batches, ratio_of, within_rounds

SUBJECT = "specmoe"
NAMES = {"specmoe": "SpecMoE"}

Row = dict[str, Any]


@dataclass(frozen=True)
class Headline:
    """One sentence for all batches, then one for each batch."""

    summary: str
    sentences: list[str]


def headline(summary: pd.DataFrame, frame: pd.DataFrame, subject: str = SUBJECT) -> Headline:
    """What one workload's results say about ``subject`` against the reference and against its best rival.

    Of several configurations of the subject, the one with the largest mean speed-up speaks, and that is said.
    """
    name = NAMES.get(subject, subject)
    kind = next((kind for kind in KINDS if (summary["kind"] == kind).any()), "measured")
    ours = summary[(summary["system"] == subject) & (summary["kind"] == kind)]
    if not len(ours):
        return Headline(f"{name} was not measured here.", [])
    finished = ours[ours["status"] == "ok"]
    if not len(finished):
        return Headline(f"{name} gave no result: {ours['reason'].iloc[0]}.", [])
    if not finished["speedup"].notna().any():
        return Headline(f"{name} finished, but no {REFERENCE} result of the same rounds stands beside it.", [])
    title, among = _spokesman(finished)
    rows = finished[finished["title"] == title].to_dict("records")
    who = f"{name} ({title}{f', the fastest of {among} configurations' if among > 1 else ''})"
    who = who if kind == "measured" else f"{kind.capitalize()}, not measured: {who}"
    lost = sorted(set(ours[ours["title"] == title]["batch_size"]) - {row["batch_size"] for row in rows})
    sentences = [_sentence(name, row) + _rival(row, summary, frame) for row in rows]
    sentences += [f"At batch {batch}, {name} gave no result." for batch in lost]
    if len(rows) > 1:
        mean = mean_over_batches(frame, rows)
        sentences += [f"Geometric mean of the speed-ups over {len(rows)} batch sizes: {mean}."]
    return Headline(_overall(who, rows), sentences)


def _spokesman(finished: pd.DataFrame) -> tuple[str, int]:
    means = finished.assign(log=np.log(finished["speedup"].astype(float))).groupby("title")["log"].mean()
    return str(means.idxmax()), len(means)


def _overall(who: str, rows: list[Row]) -> str:
    if len(rows) == 1:
        return f"{who} {_claim(rows[0])}{_bytes(rows[0])}."
    words = {
        "faster": f"faster than {REFERENCE}",
        "slower": "slower",
        "same": "not to be told apart from it",
        "single": "measured in one round only",
        "none": "without a reference",
    }
    parts: list[str] = []
    for verdict, word in words.items():
        batches = [row["batch_size"] for row in rows if ratio_of(row).verdict == verdict]
        if batches:
            word = f"slower than {REFERENCE}" if verdict == "slower" and not parts else word
            word = f"not to be told apart from {REFERENCE}" if verdict == "same" and not parts else word
            parts.append(f"{word} at batch {_listed(batches)}")
    return f"{who} is {', '.join(parts)}."


def _listed(batches: list[int]) -> str:
    return " and ".join(filter(None, [", ".join(map(str, batches[:-1])), str(batches[-1])]))


def _sentence(name: str, row: Row) -> str:
    return f"{name} {_claim(row)}{_bytes(row)}."


def _claim(row: Row) -> str:
    ratio, at = ratio_of(row), f"at batch {row['batch_size']}"
    if ratio.median is None:
        return f"has no {REFERENCE} result to be compared with {at}"
    interval = f"[{ratio.low:.2f}, {ratio.high:.2f}]" if ratio.low is not None else ""
    speed = f"{ratio.median:.2f}×"
    match ratio.verdict:
        case "faster":
            return f"decodes {speed} {interval} as fast as {REFERENCE} {at}"
        case "slower":
            return f"is slower than {REFERENCE} {at}: it decodes at {speed} {interval} its speed"
        case "same":
            return f"cannot be told apart from {REFERENCE} in decode speed {at} ({speed} {interval})"
        case _:
            return f"decoded {speed} as fast as {REFERENCE} {at} in the one round measured (n=1, no interval)"


def _bytes(row: Row) -> str:
    counts = {"link_ratio": "over the link", "kernel_ratio": "by the kernel's count"}
    name = next((name for name in counts if not pd.isna(row[name])), None)
    if name is None:
        return ""
    change = 100 * (row[name] - 1)
    if abs(change) < 1:
        return f", moving about as many bytes per token {counts[name]}"
    return f", moving {abs(change):.0f} % {'more' if change > 0 else 'fewer'} bytes per token {counts[name]}"


def _rival(row: Row, summary: pd.DataFrame, frame: pd.DataFrame) -> str:
    """A further sentence on the fastest other system at the row's batch, unless that is the reference."""
    others = summary[
        (summary["kind"] == row["kind"])
        & (summary["batch_size"] == row["batch_size"])
        & (summary["status"] == "ok")
        & (summary["system"] != row["system"])
    ]
    if not len(others):
        return ""
    best = others.loc[others["decode_tok_s"].idxmax()]
    if best["is_reference"]:
        return ""
    ratio = within_rounds(_rounds(frame, row), _rounds(frame, best), "decode_tok_s")
    if ratio.median is None:
        return ""
    words = {"faster": "faster", "slower": "slower", "same": "not to be told apart", "single": "one round only"}
    unequal = best["expert_budget_bytes"] != row["expert_budget_bytes"] and not pd.isna(best["expert_budget_bytes"])
    budget = f", with a budget of {best['expert_budget_bytes'] / 1e6:,.0f} MB" if unequal else ""
    return f" Against the fastest other system, {best['title']}{budget}: {ratio} ({words[ratio.verdict]})."


def _rounds(frame: pd.DataFrame, row: Any) -> pd.DataFrame:
    same = frame["status"] == "ok"
    for name in ("workload", "kind", "title", "batch_size"):
        same &= frame[name] == row[name]
    return frame[same]
