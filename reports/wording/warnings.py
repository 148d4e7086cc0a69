"""Caveats: what weakens the conclusions that a workload's results suggest."""

from __future__ import annotations

import pandas as pd

from reports.results.distribution import LEVEL
from reports.results.fidelity import Kind, first_difference
from reports.results.load import finished
from reports.results.roles import Row
from reports.results.stats import FEW_ROUNDS
from reports.results.steadiness import drift
from reports.results.tier import not_from_disk
from reports.wording.tables import system_text

UNSTEADY = 1.3  # largest round over smallest
DRIFT = 0.25  # of the decode rate, between the halves of a run


def caveats(summary: pd.DataFrame, frame: pd.DataFrame) -> list[str]:
    """One sentence for each weakness of a workload's results; empty if there is none."""
    rows: list[Row] = summary.to_dict("records")
    ok: list[Row] = finished(summary).to_dict("records")
    checks = (
        _failures(rows),
        _limits(rows, frame),
        _rounds(ok),
        _attempts(rows),
        _steadiness(ok),
        _conclusive(ok),
        _outliers(ok),
        _warm_up(frame),
        _fidelity(ok, frame),
        _distribution(ok),
        _budgets(ok),
        _tier(frame),
        _environment(frame),
    )
    return [sentence for found in checks for sentence in found]


def _names(rows: list[Row]) -> str:
    batches: dict[str, list[str]] = {}
    for row in rows:
        batches.setdefault(system_text(row), []).append(str(row["batch_size"]))
    return "; ".join(f"{name} at batch {', '.join(found)}" for name, found in batches.items())


def _failures(rows: list[Row]) -> list[str]:
    lost = [row for row in rows if row["rounds_ok"] < row["rounds"]]
    return [f"Some rounds gave no result: {_names(lost)}."] if lost else []


def _limits(rows: list[Row], frame: pd.DataFrame) -> list[str]:
    free = [row for row in rows if not row["enforced"] and row["kind"] != "projected"]
    if not free:
        return []
    reasons = sorted({str(reason) for reason in frame["limit_reason"].dropna()})
    which = "any system" if len(free) == len(rows) else _names(free)
    because = f" ({'; '.join(reasons)})" if reasons else ""
    return [f"The kernel did not enforce the memory limit for {which}{because}."]


def _rounds(ok: list[Row]) -> list[str]:
    fewest = min((row["rounds_ok"] for row in ok), default=FEW_ROUNDS)
    if fewest >= FEW_ROUNDS:
        return []
    if fewest == 1:
        return ["Some figures come from a single round and have no interval."]
    return [f"With {fewest} rounds, an interval spans about the range from the smallest to the largest ratio."]


def _steadiness(ok: list[Row]) -> list[str]:
    unsteady = [row for row in ok if row["decode_tok_s_high"] > UNSTEADY * row["decode_tok_s_low"]]
    return [f"Decode speed varies by more than 30 % between rounds: {_names(unsteady)}."] if unsteady else []


def _attempts(rows: list[Row]) -> list[str]:
    retried = [row for row in rows if row["failed_attempts"]]
    return [f"Some rounds finished only after failed attempts: {_names(retried)}."] if retried else []


def _conclusive(ok: list[Row]) -> list[str]:
    """Rows whose spread between rounds, rather than their number, allows no conclusion (``reports.results.stats``)."""
    wide = [row for row in ok if row["unsteady"] and not row["is_reference"]]
    if not wide:
        return []
    return [
        f"Speed-ups vary too much between rounds to allow a conclusion: {_names(wide)}. Use an idle machine or more "
        "rounds (`--set rounds=6` or more)."
    ]


def _outliers(ok: list[Row]) -> list[str]:
    """Rounds whose speed-up is far from that of the others."""
    far = [(row, row["outliers"]) for row in ok if row["outliers"] and not row["is_reference"]]
    if not far:
        return []
    texts = [f"{_names([row])}, {', '.join(found)} (median {row['speedup']:.2f}×)" for row, found in far]
    return [f"Speed-ups of single rounds stand out, the median does not follow them: {'; '.join(texts)}."]


def _warm_up(frame: pd.DataFrame) -> list[str]:
    """Cells whose rate changes within the timed part in the same direction in every round."""
    found: dict[str, list[str]] = {}
    for (kind, title, batch), part in finished(frame).groupby(["kind", "title", "batch_size"], sort=False):
        timed = [one for record in part["record"] for one in record.get("repetitions") or []]
        ratio = drift([one["arrivals_s"] for one in timed if one.get("arrivals_s")], DRIFT)
        if ratio is not None:
            name = system_text({"kind": kind, "title": title})
            found.setdefault(name, []).append(f"{100 * (ratio - 1):+.0f} % at batch {batch}")
    if not found:
        return []
    texts = "; ".join(f"{name} {', '.join(changes)}" for name, changes in found.items())
    return [
        "The timed part is not steady: the later half of the decoded tokens came faster (+) or slower (-) than the "
        f"earlier half: {texts}. A longer warm-up (`--set warmup_tokens=16`) or more tokens show the steady rate."
    ]


def _fidelity(ok: list[Row], frame: pd.DataFrame) -> list[str]:
    """Tokens that differ by more than rounding, and those that differ at ties, each with its first difference."""
    lossless = [row for row in ok if row["lossless"] is not False and row["fidelity_low"] < 1]
    ties = [row for row in lossless if row["fidelity_kind"] == "tie"]
    off = [row for row in lossless if row["fidelity_kind"] != "tie"]
    out = []
    if off:
        first = _first_difference(off, frame, "differs")
        out.append(
            f"Output is wrong: it differs from the reference tokens by more than rounding: {_names(off)}{first}."
        )
    if ties:
        first = _first_difference(ties, frame, "tie")
        out.append(
            "Two tokens are as likely as each other within the reference's own rounding, and the output has the other "
            f"one: {_names(ties)}{first}."
        )
    return out


def _first_difference(rows: list[Row], frame: pd.DataFrame, kind: Kind) -> str:
    """The first difference of a kind, in brackets."""
    titles = {row["title"] for row in rows}
    texts = (first_difference(record, kind) for record in frame[frame["title"].isin(titles)]["record"])
    found = next((text for text in texts if text), "")
    return f" ({found})" if found else ""


def _distribution(ok: list[Row]) -> list[str]:
    off = [row for row in ok if row["lossless"] is not False and row["distribution_p_low"] < LEVEL]
    if not off:
        return []
    return [
        f"Sampled tokens are not distributed as the reference model's although the system should be lossless "
        f"(p below {LEVEL:g}): {_names(off)}."
    ]


def _budgets(ok: list[Row]) -> list[str]:
    over = [row for row in ok if row["peak_device_expert_bytes_high"] > row["expert_budget_bytes"]]
    return [f"Expert bytes on the device exceed the budget: {_names(over)}."] if over else []


def _tier(frame: pd.DataFrame) -> list[str]:
    """Cells whose slow tier should be a disk although the kernel read much less than crossed the link."""
    ok = finished(frame)
    counts = zip(ok["title"], ok["link_bytes"], ok["kernel_read_bytes"], ok["slow_tier"], strict=True)
    memory = sorted(
        {
            str(title)
            for title, link, kernel, slow_tier in counts
            if not (pd.isna(link) or pd.isna(kernel)) and not_from_disk(link, kernel, slow_tier)
        }
    )
    if not memory:
        return []
    return [
        f"The slow tier was memory, not a disk, or the kernel does not count reads: it read much less than crossed the "
        f"link ({', '.join(memory)}). Put the cache folder (SPECMOE_CACHE) on a disk."
    ]


def _environment(frame: pd.DataFrame) -> list[str]:
    seen = [record.get("environment") or {} for record in frame["record"]]
    out = []
    if any(environment.get("git_dirty") for environment in seen):
        out.append("The code had uncommitted changes when some cells ran.")
    for name in ("git_revision", "torch", "transformers"):
        values = sorted({str(environment[name]) for environment in seen if environment.get(name)})
        if len(values) > 1:
            out.append(f"Records differ in {name}: {', '.join(values)}.")
    return out
