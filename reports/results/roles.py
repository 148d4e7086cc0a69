"""Which system is the subject of a report, which is the reference of ratios, and which are rivals.

Kept free of heavy imports, so that the command line can take its defaults from here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

SUBJECT = "specmoe"
SUBJECT_NAME = "SpecMoE"
REFERENCE = "on-demand"
CACHE = "caching"
KINDS = ("measured", "emulated", "oracle", "projected")  # the order of tables

Row = dict[str, Any]


def best_rival(summary: pd.DataFrame, row: Row) -> Row | None:
    """The fastest finished row of another system, of the workload, kind and batch size of ``row``; None without one.

    A kind of its own, an oracle is never the rival of a measured system.
    """
    same = (summary["status"] == "ok") & (summary["system"] != row["system"])
    for name in ("workload", "kind", "batch_size"):
        same &= summary[name] == row[name]
    others = summary[same]
    return None if others.empty else dict(others.loc[others["decode_tok_s"].idxmax()])


def named_reference(systems: list[Row]) -> str | None:
    """The label that ratios refer to where the reference system is absent, from a configuration's ``systems``.

    It is the first one that is not the subject, or the first of an ablation of the subject; None for fewer than two.
    """
    if len(systems) < 2:
        return None
    others = [entry for entry in systems if entry.get("system") != SUBJECT]
    first = (others or systems)[0]
    return first.get("label") or first.get("system")
