"""Which cells are still to be measured, and in which order."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from harness.plan.experiment import PlannedCell
from reports.results.record import Record
from reports.results.rounds import counted_lines

FINISHED = ("ok", "not_supported")
RETRIED = ("failed", "timeout")


@dataclass(frozen=True)
class Unit:
    """One cell in one round; ``attempt`` is one more than the number of earlier tries, in earlier runs too."""

    planned: PlannedCell
    round: int
    attempt: int = 1


def order(cells: Sequence[PlannedCell], number: int, seed: int) -> list[PlannedCell]:
    """The cells of a round in the order they run: shuffled, the same for the same seed."""
    shuffled = list(cells)
    random.Random(f"{seed}-{number}").shuffle(shuffled)
    return shuffled


def todo(cells: Sequence[PlannedCell], rounds: int, seed: int, records: Iterable[Record]) -> list[Unit]:
    """All units without a finished record, round after round."""
    seen = list(records)
    finished = {r.key for r in seen if r.status in FINISHED}
    tries = Counter(r.key for r in seen)
    return [
        Unit(planned, number, tries[planned.cell.cell_id, number] + 1)
        for number in range(rounds)
        for planned in order(cells, number, seed)
        if (planned.cell.cell_id, number) not in finished
    ]


def unresolved(records: Iterable[Record]) -> list[Record]:
    """The record that counts of every cell and round that never finished."""
    seen = list(records)
    places = counted_lines([r.key for r in seen], [r.status in FINISHED for r in seen])
    return [seen[place] for place in places if seen[place].status in RETRIED]


def recovered(records: Iterable[Record]) -> list[Record]:
    """Failures after which a later try of the same cell and round finished."""
    seen = list(records)
    finished = {r.key for r in seen if r.status in FINISHED}
    return [r for r in seen if r.status in RETRIED and r.key in finished]
