"""The raw figures of one repetition: clock, kernel counters, the system's own counters and the check of its output.

The runner validates what the worker hands over as a ``reports.results.repetition.Repetition``.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from baselines.contract import CapabilityCard, Generation, Request
from baselines.counters import Counters
from harness.run.engines import Engines

_NO_TOKEN, _NO_REFERENCE = -1, -2
_ORACLE_TIMES = {"oracle_prefill_s": "prefill_s", "oracle_decode_s": "decode_s"}


@dataclass(frozen=True)
class Mark:
    """A point in time, and the bytes that the kernel had read for this process and its engines until then."""

    seconds: float
    read_bytes: int | None

    @classmethod
    def now(cls, engines: Engines) -> Mark:
        return cls(time.perf_counter(), engines.read_bytes())


class Arrivals:
    """Notes when each token of each row was reported as final (``Request.on_tokens``)."""

    def __init__(self, rows: int) -> None:
        self._started = time.perf_counter()
        self._times: list[list[float]] = [[] for _ in range(rows)]

    def note(self, row: int, count: int) -> None:
        """``count`` more tokens of ``row`` are final now."""
        self._times[row] += [time.perf_counter()] * count

    def seconds(self, lengths: Sequence[int]) -> list[list[float]] | None:
        """By row, from the start to each of its ``lengths`` tokens; None if nothing was reported.

        Raises:
            RuntimeError: more or fewer tokens were reported than the system returned.
        """
        if not any(self._times):
            return None
        for row, (times, length) in enumerate(zip(self._times, lengths, strict=True)):
            if len(times) != length:
                raise RuntimeError(f"row {row} has {length} tokens, {len(times)} were reported: correct on_tokens")
        return [[round(one - self._started, 6) for one in times] for times in self._times]


def raw_figures(
    marks: Sequence[Mark],
    generation: Generation,
    request: Request,
    reference: list[list[int]] | None,
    card: CapabilityCard,
) -> dict[str, Any]:
    """Fields of a ``Repetition``; ``marks`` are start, first token and end of the call.

    Counters are copied under their own names. ``reference`` holds the expected tokens of each row,
    None if they are drawn at random.

    Raises:
        RuntimeError: computed times from a system that is not an oracle, or an oracle without them.
    """
    counters, tokens = generation.counters, generation.rows()
    if generation.counts is not None and reference is not None:
        tokens, reference = of_equal_length(tokens, reference)
    start, first, end = marks
    start_bytes, first_bytes, end_bytes = (None if card.external else mark.read_bytes for mark in marks)
    counted = {name: value for name, value in vars(counters).items() if name not in _ORACLE_TIMES}
    measured = {
        "prefill_s": first.seconds - start.seconds,
        "decode_s": end.seconds - first.seconds,
        "prompt_tokens": int(request.attention_mask.sum()),
        "new_tokens": sum(generation.lengths()),
        "new_tokens_by_row": list(request.lengths) if request.output_tokens else None,
        "decode_steps": counters.decode_steps or request.new_tokens - 1,
        "prefill_kernel_read_bytes": _difference(start_bytes, first_bytes),
        "decode_kernel_read_bytes": _difference(first_bytes, end_bytes),
        "drafted_tokens": _total(counters.drafted_by_position),
        "accepted_tokens": _total(counters.accepted_by_position),
        "fidelity": None if reference is None else fidelity(tokens, reference),
    }
    return counted | measured | oracle_times(card, counters)


def oracle_times(card: CapabilityCard, counters: Counters) -> dict[str, float]:
    """The times an oracle computed, which replace the clock's.

    Raises:
        RuntimeError: they come from another kind of system, or are missing from an oracle.
    """
    given = {name: value for source, name in _ORACLE_TIMES.items() if (value := getattr(counters, source)) is not None}
    if bool(given) != (card.kind == "oracle"):
        raise RuntimeError(
            f"{card.name} is of kind {card.kind!r}: computed times come from oracles, and only from them"
        )
    return given


def fidelity(tokens: list[list[int]], reference: list[list[int]]) -> float:
    """Length of the common prefix over the reference's length, mean over rows; 1.0 if all tokens are equal."""
    shares = []
    for row, expected in zip(tokens, reference, strict=True):
        place = first_difference(row, expected)
        same = len(expected) if place is None else place
        shares.append(same / len(expected) if len(row) == len(expected) else 0.0)
    return sum(shares) / len(shares)


def first_difference(row: list[int], other: list[int]) -> int | None:
    """The first place at which two rows have different tokens; None if one begins with the other."""
    return next((i for i, (ours, theirs) in enumerate(zip(row, other, strict=False)) if ours != theirs), None)


def of_equal_length(rows: list[list[int]], expected: list[list[int]]) -> tuple[list[list[int]], list[list[int]]]:
    """Rows of texts, encoded again, of which the shorter of each pair ends in tokens that no model has."""
    pairs = [(max(len(row), len(other)), row, other) for row, other in zip(rows, expected, strict=True)]
    return (
        [row + [_NO_TOKEN] * (length - len(row)) for length, row, _ in pairs],
        [other + [_NO_REFERENCE] * (length - len(other)) for length, _, other in pairs],
    )


def _difference(before: int | None, after: int | None) -> int | None:
    return None if before is None or after is None else after - before


def _total(counts: list[int] | None) -> int | None:
    return None if counts is None else sum(counts)
