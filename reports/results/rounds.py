"""The rule by which result lines count: every cell and round once, by its last finished line.

A round has several lines after failed attempts, or where a file was resumed, concatenated or named twice.
"""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Iterable

from reports.results.record import Record

IDENTITY = ("run_id", "cell_id", "kind", "round")
"""Fields of a record that identify one cell in one round of one run."""


def counted_lines(keys: Iterable[Hashable], finished: Iterable[bool]) -> list[int]:
    """Places of the lines that count, ascending: of each key the last finished line, else its last line."""
    kept: dict[Hashable, tuple[bool, int]] = {}
    for place, (key, done) in enumerate(zip(keys, finished, strict=True)):
        kept[key] = max(kept.get(key, (False, -1)), (done, place))
    return sorted(place for _, place in kept.values())


def counted(records: Iterable[Record]) -> list[Record]:
    """The records that count, in their order; warns about those that do not."""
    seen = list(records)
    keys = [tuple(getattr(record, name) for name in IDENTITY) for record in seen]
    places = counted_lines(keys, [record.finished for record in seen])
    warn_of_replaced(len(seen) - len(places), stacklevel=3)
    return [seen[place] for place in places]


def warn_of_replaced(number: int, stacklevel: int = 2) -> None:
    """Say how many records another one stands for, if any."""
    if number:
        text = f"{number} records were replaced by another one of the same cell and round"
        warnings.warn(text, stacklevel=stacklevel + 1)
