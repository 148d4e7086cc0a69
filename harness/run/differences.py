"""Where a system's tokens differ from the reference's, and whether rounding explains it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.run.reference import Logits
from harness.run.repetition import first_difference, of_equal_length
from reports.results.fidelity import Kind, worst


def explained(tokens: list[list[int]], expected: list[list[int]], reference: Path | None) -> dict[str, Any]:
    """Fields of a ``Repetition`` on fidelity.

    Args:
        tokens: the system's, by row.
        expected: the reference's.
        reference: the file of the reference's tokens, beside which its logits lie; None for texts that have none.
    """
    tokens, expected = of_equal_length(tokens, expected)
    first = [first_difference(row, other) for row, other in zip(tokens, expected, strict=True)]
    if all(position is None for position in first):
        return {"fidelity_kind": "equal"}
    logits = None if reference is None else Logits.read(reference)
    found = [
        _difference(row, position, tokens[row][position], expected[row][position], logits)
        for row, position in enumerate(first)
        if position is not None
    ]
    kind = worst(difference["kind"] for difference in found)
    floor = None if logits is None else logits.noise_floor
    return {"fidelity_kind": kind, "differences": found, "noise_floor": floor}


def _difference(row: int, position: int, token: int, expected: int, logits: Logits | None) -> dict[str, Any]:
    """Fields of a ``Difference``."""
    kind: Kind = "differs"
    margin, bound = None, False
    if logits is not None and expected >= 0:
        known = dict(zip(logits.tokens[row][position], logits.logits[row][position], strict=True))
        bound = token not in known
        margin = known[expected] - (min(known.values()) if bound else known[token])
        if not bound and margin <= logits.noise_floor:
            kind = "tie"
    return {
        "row": row,
        "position": position,
        "token": token if token >= 0 else None,
        "reference_token": expected if expected >= 0 else None,
        "margin": margin,
        "margin_is_bound": bound,
        "kind": kind,
    }
