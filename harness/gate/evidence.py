"""The gate's evidence: records of before and after, and the slowdowns they show."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from reports.results.record import Record
from reports.results.roles import REFERENCE
from reports.results.stats import Ratio, bootstrap, quotient

CONFIDENCE = 0.99
"""Of an interval.  It is evaluated after every round: 99 % each time makes about 95 % for the whole sequence."""


@dataclass
class Evidence:
    """Records of before (``then``) and after (``now``); ``paired`` if their rounds were run here side by side."""

    then: list[Record]
    now: list[Record]
    paired: bool
    reference: str = REFERENCE

    def slowdowns(self) -> dict[str, Ratio]:
        """Time now over time then by ``cell_id``, with an interval over rounds.

        Paired: of the same cell in the same round.  Otherwise each side is taken relative to the reference system
        within its own round, so that the two sides may come from different machines.
        """
        return self._paired() if self.paired else self._relative()

    def _paired(self) -> dict[str, Ratio]:
        speeds = {(record.cell_id, record.round): speed for record, speed in _speeds(self.now)}
        ratios: dict[str, list[float]] = {}
        for record, before in _speeds(self.then):
            if now := speeds.get((record.cell_id, record.round)):
                ratios.setdefault(record.cell_id, []).append(before / now)
        return {cell_id: bootstrap(values, CONFIDENCE) for cell_id, values in ratios.items()}

    def _relative(self) -> dict[str, Ratio]:
        then, now = relative_speeds(self.then, self.reference), relative_speeds(self.now, self.reference)
        return {cell_id: quotient(then[cell_id], now[cell_id], CONFIDENCE) for cell_id in then if cell_id in now}


def relative_speeds(records: Sequence[Record], reference: str) -> dict[str, list[float]]:
    """Decode speed over the reference system's, by ``cell_id``, for every round in which both finished.

    The reference of a cell has equal conditions, and the same expert budget if there is one; reference cells
    themselves are left out.
    """
    finished = _speeds(records)
    references: dict[tuple[str, int, str], list[tuple[Record, float]]] = {}
    for record, speed in finished:
        if record.cell.system == reference:
            references.setdefault(_place(record), []).append((record, speed))
    ratios: dict[str, list[float]] = {}
    for record, speed in finished:
        beside = references.get(_place(record), [])
        if record.cell.system == reference or not beside:
            continue
        budget = record.cell.expert_budget_bytes
        _, base = min(beside, key=lambda pair: (pair[0].cell.expert_budget_bytes != budget, pair[0].cell_id))
        ratios.setdefault(record.cell_id, []).append(speed / base)
    return ratios


def _speeds(records: Sequence[Record]) -> list[tuple[Record, float]]:
    """Every finished record with its decode speed, if that is a positive finite number."""
    speeds = [(record, record.metrics.decode_tok_s) for record in records if record.finished and record.metrics]
    return [(record, speed) for record, speed in speeds if math.isfinite(speed) and speed > 0]


def _place(record: Record) -> tuple[str, int, str]:
    return record.run_id, record.round, record.cell.conditions
