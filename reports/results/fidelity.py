"""How a system's tokens compare with the reference's: equal, tied within its own rounding, or different."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import pandas as pd

Kind = Literal["equal", "tie", "differs"]
KINDS: tuple[Kind, ...] = ("equal", "tie", "differs")  # from the best to the worst


def worst(kinds: Iterable[Any]) -> Kind | None:
    """The worst of several; None where none is known, as in records from before kinds were recorded."""
    known = set(kinds)
    return next((kind for kind in reversed(KINDS) if kind in known), None)


def kind_of(record: Mapping[str, Any]) -> Kind | None:
    """The worst of a record's repetitions, from its line."""
    return worst(repetition.get("fidelity_kind") for repetition in record.get("repetitions") or [])


def differing(frame: pd.DataFrame) -> pd.Series:
    """Which records have other tokens than the reference, ties excepted."""
    return (frame["fidelity"] < 1) & (frame["fidelity_kind"] != "tie")


def first_difference(record: Mapping[str, Any], kind: Kind) -> str:
    """The first difference of a kind in a record, as text; empty for none."""
    for repetition in record.get("repetitions") or []:
        for one in repetition.get("differences") or []:
            if one["kind"] == kind:
                return _text(one, repetition.get("noise_floor"))
    return ""


def _text(difference: Mapping[str, Any], noise_floor: float | None) -> str:
    where = f"row {difference['row']}, new token {difference['position']}"
    tokens = f"{difference['token']} for {difference['reference_token']}"
    margin = difference.get("margin")
    if margin is None:
        return f"{where}: {tokens}"
    least = "at least " if difference.get("margin_is_bound") else ""
    floor = "" if noise_floor is None else f", noise floor {noise_floor:.3g}"
    return f"{where}: {tokens}, logit margin {least}{margin:.3g}{floor}"
