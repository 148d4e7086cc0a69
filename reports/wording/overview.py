"""The whole result in one table: SpecMoE beside on-demand and beside its best rival, for every experiment and batch."""

from __future__ import annotations

from typing import Any

import pandas as pd

from reports.results.aggregate import SUBJECT, ratio_of, within_rounds
from reports.text import NONE, number
from reports.wording.tables import Key, Table, TableCell, system_text

HEADERS = [
    "experiment",
    "model",
    "batch",
    "fastest SpecMoE",
    "tok/s",
    "against reference",
    "against best rival",
    "bytes per token",
    "tokens per step",
]


def table(frame: pd.DataFrame, summary: pd.DataFrame) -> Table:
    """One row per workload, kind and batch that has a finished result of the subject; oracles are no rivals."""
    rows = []
    facts = frame.drop_duplicates("workload").set_index("workload")
    ours = summary[(summary["system"] == SUBJECT) & (summary["status"] == "ok")]
    for (workload, _, _), part in ours.groupby(["workload", "kind", "batch_size"], sort=False):
        named = part[part["speedup"].notna()]
        chosen = named if len(named) else part
        best = chosen.loc[chosen["decode_tok_s"].idxmax()].to_dict()
        rows.append(_row(best, facts.loc[workload], frame, summary))
    return Table("measured", "Fastest SpecMoE by experiment and batch", HEADERS, rows)


def _row(best: dict[str, Any], facts: pd.Series, frame: pd.DataFrame, summary: pd.DataFrame) -> list[TableCell]:
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


def _rival(best: dict[str, Any], frame: pd.DataFrame, summary: pd.DataFrame) -> tuple[str, float | None]:
    """The fastest other system of the same kind and batch, and the ratio to it."""
    same = (summary["workload"] == best["workload"]) & (summary["batch_size"] == best["batch_size"])
    found = summary[same & (summary["kind"] == best["kind"]) & (summary["status"] == "ok")]
    others = found[found["system"] != SUBJECT]
    if others.empty:
        return NONE, None
    rival = others.loc[others["decode_tok_s"].idxmax()]
    ratio = within_rounds(_rounds(frame, best), _rounds(frame, rival), "decode_tok_s")
    return (f"{ratio} of {rival['title']}" if ratio.median is not None else NONE), ratio.median


def _rounds(frame: pd.DataFrame, row: Any) -> pd.DataFrame:
    same = frame["status"] == "ok"
    for name in ("workload", "kind", "title", "batch_size"):
        same &= frame[name] == row[name]
    return frame[same]
