"""The result in sentences: faster, slower, or no significant difference, as the intervals support."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from reports.results.aggregate import mean_over_batches, ratio_of, rounds_of, within_rounds
from reports.results.load import finished
from reports.results.roles import KINDS, REFERENCE, SUBJECT, SUBJECT_NAME, Row, best_rival
from reports.text import number


@dataclass(frozen=True)
class Headline:
    """One sentence for all batches, then one for each batch."""

    summary: str
    sentences: list[str]


def headline(summary: pd.DataFrame, frame: pd.DataFrame) -> Headline:
    """What one workload's results say about the subject against the reference and against its best rival.

    Of several configurations of the subject, the one with the largest mean speed-up is reported, and the text says so.
    """
    name = SUBJECT_NAME
    kind = next((kind for kind in KINDS if (summary["kind"] == kind).any()), "measured")
    ours = summary[(summary["system"] == SUBJECT) & (summary["kind"] == kind)]
    if not len(ours):
        return Headline(f"{name} was not measured in this experiment.", [])
    done = finished(ours)
    if len(done) and summary["system"].nunique() == 1 and done["title"].nunique() > 1:
        return _settings(done)
    if not len(done):
        return Headline(f"{name} gave no result: {ours['reason'].iloc[0]}.", [])
    if not done["speedup"].notna().any():
        return Headline(f"{name} finished, but there is no {REFERENCE} result of the same rounds to compare with.", [])
    title, among = _fastest_configuration(done)
    rows = done[done["title"] == title].to_dict("records")
    who = f"{name} ({title}{f', the fastest of {among} configurations' if among > 1 else ''})"
    who = who if kind == "measured" else f"{kind.capitalize()}, not measured: {who}"
    lost = sorted(set(ours[ours["title"] == title]["batch_size"]) - {row["batch_size"] for row in rows})
    sentences = [f"{name} {_claim(row)}{_bytes(row)}.{_rival(row, summary, frame)}" for row in rows]
    sentences += [f"At batch {batch}, {name} gave no result." for batch in lost]
    if len(rows) > 1:
        mean = mean_over_batches(frame, rows)
        sentences += [f"Geometric mean of the speed-ups over {len(rows)} batch sizes: {mean}."]
    return Headline(_overall(who, rows), sentences)


def _settings(done: pd.DataFrame) -> Headline:
    """An ablation: the fastest setting at each batch size against the first one the experiment names."""
    sentences = [_fastest(part) for _, part in done.groupby("batch_size") if part["speedup"].notna().any()]
    about = f"Comparison of {done['title'].nunique()} settings of {SUBJECT_NAME}"
    if len(sentences) == 1:
        return Headline(f"{about}: {sentences[0][0].lower()}{sentences[0][1:]}", [])
    return Headline(f"{about}.", sentences)


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
            return f"{at} no setting is faster than {first['title']}; the closest, {words}."
        case _:
            return f"{at} no setting is significantly faster than {first['title']}; {words}."


def _fastest_configuration(done: pd.DataFrame) -> tuple[str, int]:
    """The title with the largest geometric mean of speed-ups, and the number of titles."""
    means = done.assign(log=np.log(done["speedup"].astype(float))).groupby("title")["log"].mean()
    return str(means.idxmax()), len(means)


def _overall(who: str, rows: list[Row]) -> str:
    if len(rows) == 1:
        return f"{who} {_claim(rows[0])}{_bytes(rows[0])}."
    other = _other(rows[0])
    words = {
        "faster": f"faster than {other}",
        "slower": "slower",
        "same": "not significantly different from it",
        "single": "measured in a single round",
        "none": "without a reference",
    }
    parts: list[str] = []
    for verdict, word in words.items():
        batches = [row["batch_size"] for row in rows if ratio_of(row).verdict == verdict]
        if batches:
            word = f"slower than {other}" if verdict == "slower" and not parts else word
            word = f"not significantly different from {other}" if verdict == "same" and not parts else word
            parts.append(f"{word} at batch {_listed(batches)}")
    return f"{who} is {', '.join(parts)}."


def _listed(batches: list[int]) -> str:
    return " and ".join(filter(None, [", ".join(map(str, batches[:-1])), str(batches[-1])]))


def _other(row: Row) -> str:
    """The system that the row's ratio is to."""
    return str(row["reference"] or REFERENCE)


def _claim(row: Row) -> str:
    ratio, at, other = ratio_of(row), f"at batch {row['batch_size']}", _other(row)
    if ratio.median is None:
        return f"has no {other} result to compare with {at}"
    interval = f"[{ratio.low:.2f}, {ratio.high:.2f}]" if ratio.low is not None else ""
    speed = f"{ratio.median:.2f}×"
    match ratio.verdict:
        case "faster":
            return f"decodes {speed} {interval} as fast as {other} {at}"
        case "slower":
            return f"is slower than {other} {at}: it decodes at {speed} {interval} its speed"
        case "same":
            return f"does not differ significantly from {other} in decode speed {at} ({speed} {interval})"
        case _:
            return f"decodes {speed} as fast as {other} {at} in a single round (n=1, no interval)"


def _bytes(row: Row) -> str:
    counts = {"link_ratio": "over the link", "kernel_ratio": "as counted by the kernel"}
    name = next((name for name in counts if not pd.isna(row[name])), None)
    if name is None:
        return ""
    change = 100 * (row[name] - 1)
    if abs(change) < 1:
        return f", moving about the same number of bytes per token {counts[name]}"
    return f", moving {abs(change):.0f} % {'more' if change > 0 else 'fewer'} bytes per token {counts[name]}"


def _rival(row: Row, summary: pd.DataFrame, frame: pd.DataFrame) -> str:
    """A further sentence on the fastest other system at the row's batch size, unless that is the reference."""
    best = best_rival(summary, row)
    if best is None or best["is_reference"]:
        return ""
    ratio = within_rounds(rounds_of(frame, row), rounds_of(frame, best), "decode_tok_s")
    if ratio.median is None:
        return ""
    words = {"faster": "faster", "slower": "slower", "same": "no significant difference", "single": "a single round"}
    unequal = best["expert_budget_bytes"] != row["expert_budget_bytes"] and not pd.isna(best["expert_budget_bytes"])
    budget = f", with a budget of {best['expert_budget_bytes'] / 1e6:,.0f} MB" if unequal else ""
    return f" Against the fastest other system, {best['title']}{budget}: {ratio} ({words[ratio.verdict]})."
