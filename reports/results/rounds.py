"""The rule by which result lines count: every cell and round once, by its last finished line.

A round has several lines after failed attempts, or where a file was resumed, concatenated or named twice.
"""

from __future__ import annotations

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
    """The records that count, in their order."""
    seen = list(records)
    keys = [tuple(getattr(record, name) for name in IDENTITY) for record in seen]
    return [seen[place] for place in counted_lines(keys, [record.finished for record in seen])]
