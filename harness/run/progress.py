"""Progress of a run on standard error: a bar in a terminal, else one line per cell; both with the time that is left."""

from __future__ import annotations

import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Self

from tqdm import tqdm

from harness.plan.estimate import cell_s
from harness.plan.schedule import Unit
from reports.results.record import Record

_BAR = "{percentage:3.0f}%|{bar:20}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"


class Progress:
    """What is done and how long the rest takes.

    A cell that ran before takes as long as its mean then, any other as long as ``harness.plan.estimate`` says, scaled
    by what those that ran took.  After the first round every cell has run, and nothing is estimated any more.

    Args:
        units: what is to run.
        earlier: records of the same cells from an earlier run.
        clock: seconds; replaced in tests.
    """

    def __init__(
        self, units: Sequence[Unit], earlier: Iterable[Record] = (), clock: Callable[[], float] = time.monotonic
    ) -> None:
        cells = {id(unit.planned): unit.planned.cell for unit in units}  # rounds share them, and an id costs a checksum
        names = {place: cell.cell_id for place, cell in cells.items()}
        self._left = {(names[id(unit.planned)], unit.round) for unit in units}
        self._rounds = Counter(name for name, _ in self._left)  # left of each cell
        self._estimates = {names[place]: cell_s(cell) for place, cell in cells.items()}
        self._walls: dict[str, tuple[float, int]] = {}  # seconds, and the tries that took them
        for record in earlier:
            self._note(record)
        self._total, self._clock = len(units), clock
        self._started, self._spent = clock(), 0.0
        self._bar = tqdm(total=self._total, bar_format=_BAR) if units and sys.stderr.isatty() else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    @property
    def remaining_s(self) -> float:
        """Seconds until the last cell ends, preparation left out."""
        known = {name: seconds / n for name, (seconds, n) in self._walls.items() if name in self._estimates}
        estimated = sum(self._estimates[name] for name in known)
        scale = sum(known.values()) / estimated if estimated else 1.0
        expected = sum(n * known.get(name, self._estimates[name] * scale) for name, n in self._rounds.items())
        return expected * self._pace()

    def begin(self) -> None:
        """Preparation is over, cells begin."""
        self._started = self._clock()

    def finish(self, record: Record) -> None:
        """Count a record and show it; further tries of the same cell and round count once."""
        self._note(record)
        self._spent += record.wall_s
        if record.key in self._left:
            self._left.remove(record.key)
            self._rounds[record.cell_id] -= 1
        result = record.status if record.metrics is None else f"{record.metrics.decode_tok_s:.1f} tok/s"
        what = f"{record.label}, batch {record.cell.batch_size}, round {record.round + 1}: {result}"
        left = f"about {span(self.remaining_s)} left" if self._left else "done"
        done = self._total - len(self._left)
        if self._bar is not None:
            self._bar.n = done
            self._bar.set_postfix_str(f"{left}, {what}")
        else:
            print(f"[{done}/{self._total}] {what}; {left}", file=sys.stderr, flush=True)

    def _note(self, record: Record) -> None:
        if record.wall_s > 0:
            seconds, tries = self._walls.get(record.cell_id, (0.0, 0))
            self._walls[record.cell_id] = seconds + record.wall_s, tries + 1

    def _pace(self) -> float:
        """Time that passes per second of a cell: more with pauses between cells, less where several run at once."""
        return (self._clock() - self._started) / self._spent if self._spent else 1.0


def span(seconds: float) -> str:
    """A duration as text: ``40 s``, ``3 min`` or ``1 h 20 min``."""
    if seconds < 90:
        return f"{math.ceil(seconds)} s"
    minutes = math.ceil(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"
