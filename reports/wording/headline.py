"""The result in sentences: faster, slower, or no conclusion, as the intervals and the spread of the rounds support."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from reports.results.aggregate import mean_over_batches, ratio_of, rounds_of, stability_of, within_rounds
from reports.results.load import finished
from reports.results.roles import KINDS, REFERENCE, SUBJECT, SUBJECT_NAME, Row, best_rival
from reports.text import number

UNSTEADY = "the rounds vary too much to conclude"


@dataclass(frozen=True)
class Headline:
    """One sentence for all batches, then one for each batch."""

    summary: str
    sentences: list[str]


def headline(summary: pd.DataFrame, frame: pd.DataFrame) -> Headline:
    """What one workload's results say about the subject against the reference and against its best rival.

    Without the subject the systems that ran are compared with the reference.  Of several configurations of the
    subject, the one with the largest mean speed-up is reported, and the text says so.
    """
    name = SUBJECT_NAME
    kind = next((kind for kind in KINDS if (summary["kind"] == kind).any()), "measured")
    ours = summary[(summary["system"] == SUBJECT) & (summary["kind"] == kind)]
    if not len(ours):
        return _without_subject(summary)
    done = finished(ours)
    if len(done) and summary["system"].nunique() == 1 and done["title"].nunique() > 1:
        return _comparison(done, "setting", f" of {name}")
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


def _without_subject(summary: pd.DataFrame) -> Headline:
    """The systems that ran, of the first kind that has a result."""
    done = finished(summary)
    if not len(done):
        return Headline(f"No system gave a result: {summary['reason'].iloc[0]}.", [])
    kind = next(kind for kind in KINDS if (done["kind"] == kind).any())
    done = done[done["kind"] == kind]
    named = list(dict.fromkeys(done["title"]))
    if len(named) == 1:
        return Headline(f"Only {named[0]} was measured: there is nothing to compare it with.", [])
    if not (done["speedup"].notna() & ~done["is_reference"]).any():
        return Headline(f"{len(named)} systems were measured, none in the same rounds as {REFERENCE}.", [])
    found = _comparison(done, "system")
    said = found.summary if kind == "measured" else f"{kind.capitalize()}, not measured: {found.summary}"
    return Headline(said, found.sentences)


def _comparison(done: pd.DataFrame, what: str, of: str = "") -> Headline:
    """The fastest setting (or other ``what``) at each batch size against the reference, or the first that is named."""
    compared = done["speedup"].notna() & ~done["is_reference"]
    sentences = [_fastest(part, what) for _, part in done[compared].groupby("batch_size")]
    about = f"Comparison of {done['title'].nunique()} {what}s{of}"
    if len(sentences) == 1:
        return Headline(f"{about}: {sentences[0][0].lower()}{sentences[0][1:]}", [])
    return Headline(f"{about}.", sentences)


def _fastest(others: pd.DataFrame, what: str) -> str:
    best: Row = others.loc[others["speedup"].idxmax()].to_dict()
    first, at = _other(best), f"At batch {best['batch_size']}"
    steps = "" if what == "system" else f", with {number(best['tokens_per_step'])} tokens per step"
    words = f"{best['title']} decodes {ratio_of(best)} as fast as {first}{steps}"
    match _verdict(best):
        case "faster":
            return f"{at} {words}."
        case "unsteady":
            return f"{at} {words}, but {UNSTEADY}."
        case "slower":
            return f"{at} no {what} is faster than {first}; the closest, {words}."
        case _:
            return f"{at} no {what} is significantly faster than {first}; {words}."


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
        "unsteady": "too variable between rounds to conclude",
        "single": "measured in a single round",
        "none": "without a reference",
    }
    parts: list[str] = []
    for verdict, word in words.items():
        batches = [row["batch_size"] for row in rows if _verdict(row) == verdict]
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


def _verdict(row: Row) -> str:
    """The verdict of the interval, or ``unsteady`` where the spread of the rounds allows no claim of a difference."""
    verdict = ratio_of(row).verdict
    return "unsteady" if row["unsteady"] and verdict in ("faster", "slower") else verdict


def _claim(row: Row) -> str:
    ratio, at, other = ratio_of(row), f"at batch {row['batch_size']}", _other(row)
    if ratio.median is None:
        return f"has no {other} result to compare with {at}"
    interval = f"[{ratio.low:.2f}, {ratio.high:.2f}]" if ratio.low is not None else ""
    speed = f"{ratio.median:.2f}×"
    match _verdict(row):
        case "faster":
            return f"decodes {speed} {interval} as fast as {other} {at}"
        case "unsteady":
            return f"decodes {speed} {interval} as fast as {other} {at}, but {UNSTEADY}"
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
    ours, theirs = rounds_of(frame, row), rounds_of(frame, best)
    ratio, steady = within_rounds(ours, theirs, "decode_tok_s"), stability_of(ours, theirs)
    if ratio.median is None or steady is None:
        return ""
    words = {"faster": "faster", "slower": "slower", "same": "no significant difference", "single": "a single round"}
    words |= {"faster": UNSTEADY, "slower": UNSTEADY} if steady.unsteady else {}
    unequal = best["expert_budget_bytes"] != row["expert_budget_bytes"] and not pd.isna(best["expert_budget_bytes"])
    budget = f", with a budget of {best['expert_budget_bytes'] / 1e6:,.0f} MB" if unequal else ""
    return f" Against the fastest other system, {best['title']}{budget}: {ratio} ({words[ratio.verdict]})."
