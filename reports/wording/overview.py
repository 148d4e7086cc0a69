"""The overview table: for every experiment and batch size, the subject against its reference and its best rival.

Where the subject gave no result, every other system stands against the reference.
"""

from __future__ import annotations

import pandas as pd

from reports.results.aggregate import ratio_of, rounds_of, within_rounds
from reports.results.load import finished
from reports.results.roles import SUBJECT, SUBJECT_NAME, Row, best_rival
from reports.text import NONE, number
from reports.wording.tables import Key, Table, TableCell, system_text

HEADERS = ("tok/s", "ratio to reference", "ratio to best rival", "bytes per token", "tokens per step")


def table(frame: pd.DataFrame, summary: pd.DataFrame) -> Table:
    """One row per workload, kind and batch size; of each system in a workload in which the subject gave no result."""
    rows: list[list[TableCell]] = []
    facts = frame.drop_duplicates("workload").set_index("workload")
    done = finished(summary)
    with_subject = set(done[done["system"] == SUBJECT]["workload"])
    shown = done[(done["system"] == SUBJECT) | ~done["workload"].isin(with_subject)]
    for (workload, _, _), part in shown.groupby(["workload", "kind", "batch_size"], sort=False):
        chosen = [_fastest(part)] if workload in with_subject else _others(part)
        rows += [_row(row, facts.loc[workload], frame, summary) for row in chosen]
    name, who = f"Fastest {SUBJECT_NAME} setting", f"fastest {SUBJECT_NAME}"
    if not with_subject:
        name, who = "Systems", "system"
    elif len(with_subject) < shown["workload"].nunique():
        who += ", else system"
    headers = ["experiment", "model", "batch", who, *HEADERS]
    return Table("measured", f"{name} by experiment and batch size", headers, rows)


def _fastest(subject: pd.DataFrame) -> Row:
    named = subject[subject["speedup"].notna()]
    chosen = named if len(named) else subject
    return dict(chosen.loc[chosen["decode_tok_s"].idxmax()])


def _others(part: pd.DataFrame) -> list[Row]:
    """Every system but the reference, or the reference if it is alone."""
    others = part[~part["is_reference"]]
    return [dict(row) for row in (others if len(others) else part).to_dict("records")]


def _row(best: Row, facts: pd.Series, frame: pd.DataFrame, summary: pd.DataFrame) -> list[TableCell]:
    ratio = ratio_of(best)
    reference = f" of {best['reference']}" if best["reference"] and not best["is_reference"] else ""
    against = "reference" if best["is_reference"] else f"{ratio}{reference}"
    rival, rival_key = _rival(best, frame, summary)
    moved = best["link_ratio"]
    bytes_text = NONE if pd.isna(moved) or best["is_reference"] else f"{100 * (moved - 1):+.0f} %"
    cells: list[tuple[str, Key]] = [
        (str(facts["experiment"] or NONE), str(facts["experiment"])),
        (str(facts["model"]), str(facts["model"])),
        (str(best["batch_size"]), float(best["batch_size"])),
        (system_text(best), str(best["title"])),
        (number(best["decode_tok_s"]), float(best["decode_tok_s"])),
        (against, ratio.median),
        (rival, rival_key),
        (bytes_text, None if pd.isna(moved) else float(moved)),
        (number(best["tokens_per_step"]), float(best["tokens_per_step"])),
    ]
    return [TableCell(text, key) for text, key in cells]


def _rival(best: Row, frame: pd.DataFrame, summary: pd.DataFrame) -> tuple[str, float | None]:
    """The ratio to the fastest other system of the same kind and batch size, as text and as number."""
    rival = best_rival(summary, best)
    if rival is None:
        return NONE, None
    ratio = within_rounds(rounds_of(frame, best), rounds_of(frame, rival), "decode_tok_s")
    return (f"{ratio} of {rival['title']}" if ratio.median is not None else NONE), ratio.median
