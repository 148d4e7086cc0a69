"""The overview table: for every experiment and batch size, the subject against its reference and its best rival."""

from __future__ import annotations

import pandas as pd

from reports.results.aggregate import ratio_of, rounds_of, within_rounds
from reports.results.load import finished
from reports.results.roles import SUBJECT, SUBJECT_NAME, Row, best_rival
from reports.text import NONE, number
from reports.wording.tables import Key, Table, TableCell, system_text

HEADERS = [
    "experiment",
    "model",
    "batch",
    f"fastest {SUBJECT_NAME}",
    "tok/s",
    "ratio to reference",
    "ratio to best rival",
    "bytes per token",
    "tokens per step",
]


def table(frame: pd.DataFrame, summary: pd.DataFrame) -> Table:
    """One row per workload, kind and batch size with a finished result of the subject."""
    rows = []
    facts = frame.drop_duplicates("workload").set_index("workload")
    done = finished(summary)
    ours = done[done["system"] == SUBJECT]
    for (workload, _, _), part in ours.groupby(["workload", "kind", "batch_size"], sort=False):
        named = part[part["speedup"].notna()]
        chosen = named if len(named) else part
        best = chosen.loc[chosen["decode_tok_s"].idxmax()].to_dict()
        rows.append(_row(best, facts.loc[workload], frame, summary))
    return Table("measured", f"Fastest {SUBJECT_NAME} setting by experiment and batch size", HEADERS, rows)


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
