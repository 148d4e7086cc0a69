"""Running totals of the link and of expert residency; the difference of two is what happened in between."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self


@dataclass
class Counters:
    """Numbers that only grow."""

    def copy(self) -> Self:
        return replace(self)

    def since(self, before: Self) -> Self:
        """What happened after ``before`` was copied."""
        now, then = vars(self), vars(before)
        return type(self)(**{name: now[name] - then[name] for name in now})

    def plus(self, other: Self) -> Self:
        """The sum of both."""
        ours, theirs = vars(self), vars(other)
        return type(self)(**{name: ours[name] + theirs[name] for name in ours})


@dataclass
class LinkStats(Counters):
    """``busy_s``: time in which a transfer was under way.  ``wait_s``: time in which compute waited for one."""

    moved_bytes: int = 0
    transfers: int = 0
    busy_s: float = 0.0
    wait_s: float = 0.0


@dataclass
class ResidencyStats(Counters):
    """Counters of target passes and prefetches.

    ``requests`` are distinct experts asked for by target passes, ``hits`` those of them that were resident.
    A prefetched expert is *useful* when a target pass found it resident, *late* when the pass had to wait for
    it, *wasted* when no pass asked for it before it was evicted or a second cycle went by.
    """

    requests: int = 0
    hits: int = 0
    prefetched_bytes: int = 0
    useful_bytes: int = 0
    late_bytes: int = 0
    wasted_bytes: int = 0
