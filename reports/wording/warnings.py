"""Words of doubt: what in the results weakens what they seem to say."""

from __future__ import annotations

from typing import Any

import pandas as pd

from reports.results.stats import FEW_ROUNDS
from reports.wording.tables import system_text

UNSTEADY = 1.3  # largest round over smallest

Row = dict[str, Any]


def doubts(summary: pd.DataFrame, frame: pd.DataFrame) -> list[str]:
    """One sentence for each weakness of a workload's results; an empty list if none was found."""
    rows: list[Row] = summary.to_dict("records")
    ok = [row for row in rows if row["status"] == "ok"]
    checks = (
        _failures(rows),
        _limits(rows, frame),
        _rounds(ok),
        _attempts(rows),
        _steadiness(ok),
        _conclusive(ok),
        _fidelity(ok),
        _budgets(ok),
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
    return [f"Not every round gave a result: {_names(lost)}."] if lost else []


def _limits(rows: list[Row], frame: pd.DataFrame) -> list[str]:
    free = [row for row in rows if not row["enforced"] and row["kind"] != "projected"]
    if not free:
        return []
    why = sorted({str(reason) for reason in frame["limit_why_not"].dropna()})
    which = "any system" if len(free) == len(rows) else _names(free)
    return [f"The memory limit was not enforced by the kernel for {which}{': ' + '; '.join(why) if why else ''}."]


def _rounds(ok: list[Row]) -> list[str]:
    fewest = min((row["rounds_ok"] for row in ok), default=FEW_ROUNDS)
    if fewest >= FEW_ROUNDS:
        return []
    if fewest == 1:
        return ["Some figures come from one round and have no interval."]
    return [f"With {fewest} rounds an interval spans about the smallest to the largest ratio seen."]


def _steadiness(ok: list[Row]) -> list[str]:
    shaky = [row for row in ok if row["decode_tok_s_high"] > UNSTEADY * row["decode_tok_s_low"]]
    return [f"Decode speed differs by more than 30 % between rounds: {_names(shaky)}."] if shaky else []


def _attempts(rows: list[Row]) -> list[str]:
    again = [row for row in rows if row["failed_attempts"]]
    return [f"Some rounds finished only after failed attempts: {_names(again)}."] if again else []


def _conclusive(ok: list[Row]) -> list[str]:
    """The stability verdict (``reports.results.stats``) where the spread, and not only few rounds, forbids one."""
    spread = ("standard deviation", "±")
    wide = [row for row in ok if any(word in str(row["stability"]) for word in spread) and not row["is_reference"]]
    if not wide:
        return []
    return [
        f"The spread of speed-ups between rounds is too wide to conclude from for {_names(wide)}: quiet the machine or "
        "run more rounds (`--set rounds=6` or more)."
    ]


def _fidelity(ok: list[Row]) -> list[str]:
    off = [row for row in ok if row["lossless"] is not False and row["fidelity_low"] < 1]
    if not off:
        return []
    return [f"Output is not the reference's token for token although the system should be lossless: {_names(off)}."]


def _budgets(ok: list[Row]) -> list[str]:
    over = [row for row in ok if row["peak_device_expert_bytes_high"] > row["expert_budget_bytes"]]
    return [f"More expert bytes on the device than the budget allows: {_names(over)}."] if over else []


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
