"""The result in sentences, worded by the figures: faster, slower, or not to be told apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from reports.results.aggregate import KINDS, REFERENCE, SUBJECT, mean_over_batches, ratio_of, within_rounds
from reports.text import number

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
    if len(finished) and summary["system"].nunique() == 1 and finished["title"].nunique() > 1:
        return _settings(name, finished)
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


def _settings(name: str, finished: pd.DataFrame) -> Headline:
    """An ablation: the fastest setting of each batch against the first one the experiment names."""
    sentences = [_fastest(part) for _, part in finished.groupby("batch_size") if part["speedup"].notna().any()]
    said = f"{finished['title'].nunique()} settings of {name} beside each other"
    if len(sentences) == 1:
        return Headline(f"{said}: {sentences[0][0].lower()}{sentences[0][1:]}", [])
    return Headline(f"{said}.", sentences)


def _fastest(part: pd.DataFrame) -> str:
    others = part[~part["is_reference"] & part["speedup"].notna()]
    best, first = others.loc[others["speedup"].idxmax()], part[part["is_reference"]].iloc[0]
    ratio = ratio_of(best.to_dict())
    steps = f"{number(best['tokens_per_step'])} against {number(first['tokens_per_step'])} tokens per step"
    at = f"At batch {best['batch_size']}"
    words = f"{best['title']} decodes {ratio} as fast as {first['title']}, with {steps}"
    match ratio.verdict:
        case "faster":
            return f"{at} {words}."
        case "slower":
            return f"{at} none is faster than {first['title']}; nearest, {words}."
        case _:
            return f"{at} none can be told apart as faster than {first['title']}; {words}."


def _spokesman(finished: pd.DataFrame) -> tuple[str, int]:
    means = finished.assign(log=np.log(finished["speedup"].astype(float))).groupby("title")["log"].mean()
    return str(means.idxmax()), len(means)


def _overall(who: str, rows: list[Row]) -> str:
    if len(rows) == 1:
        return f"{who} {_claim(rows[0])}{_bytes(rows[0])}."
    other = _other(rows[0])
    words = {
        "faster": f"faster than {other}",
        "slower": "slower",
        "same": "not to be told apart from it",
        "single": "measured in one round only",
        "none": "without a reference",
    }
    parts: list[str] = []
    for verdict, word in words.items():
        batches = [row["batch_size"] for row in rows if ratio_of(row).verdict == verdict]
        if batches:
            word = f"slower than {other}" if verdict == "slower" and not parts else word
            word = f"not to be told apart from {other}" if verdict == "same" and not parts else word
            parts.append(f"{word} at batch {_listed(batches)}")
    return f"{who} is {', '.join(parts)}."


def _listed(batches: list[int]) -> str:
    return " and ".join(filter(None, [", ".join(map(str, batches[:-1])), str(batches[-1])]))


def _sentence(name: str, row: Row) -> str:
    return f"{name} {_claim(row)}{_bytes(row)}."


def _other(row: Row) -> str:
    """Whom the row's ratio is to."""
    return str(row["reference"] or REFERENCE)


def _claim(row: Row) -> str:
    ratio, at, other = ratio_of(row), f"at batch {row['batch_size']}", _other(row)
    if ratio.median is None:
        return f"has no {other} result to be compared with {at}"
    interval = f"[{ratio.low:.2f}, {ratio.high:.2f}]" if ratio.low is not None else ""
    speed = f"{ratio.median:.2f}×"
    match ratio.verdict:
        case "faster":
            return f"decodes {speed} {interval} as fast as {other} {at}"
        case "slower":
            return f"is slower than {other} {at}: it decodes at {speed} {interval} its speed"
        case "same":
            return f"cannot be told apart from {other} in decode speed {at} ({speed} {interval})"
        case _:
            return f"decoded {speed} as fast as {other} {at} in the one round measured (n=1, no interval)"


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
