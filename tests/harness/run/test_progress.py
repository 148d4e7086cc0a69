"""Progress tells the time left, right within a quarter after the first round, as a line per cell without a terminal."""

from __future__ import annotations

import random

import pytest

from harness.plan import schedule
from harness.plan.experiment import PlannedCell
from harness.run.progress import Progress, span
from reports.results.record import Record
from tests.harness.experiments import planned
from tests.reports.records import bare_record

COST = {"on-demand": 8.0, "caching": 6.0, "naive": 40.0, "accelerate-disk": 90.0}


def record_of(cell: PlannedCell, rnd: int, wall_s: float) -> Record:
    changes = {"cell": cell.cell, "cell_id": cell.cell.cell_id, "round": rnd, "wall_s": wall_s, "label": cell.label}
    return bare_record(0).model_copy(update=changes)


def test_after_the_first_round_the_time_left_is_right_within_a_quarter() -> None:
    cells = planned(systems=[{"system": name} for name in COST], batch_sizes=[1, 8, 32])
    chance, now = random.Random(3), [0.0]
    units = schedule.todo(cells, 4, 0, [])
    walls = [
        COST[u.planned.cell.system] * (1 + u.planned.cell.batch_size / 8) * chance.uniform(0.85, 1.15) for u in units
    ]
    progress = Progress(units, clock=lambda: now[0])
    now[0] += 500  # preparation, which tells nothing of the cells
    progress.begin()
    for number, (unit, wall_s) in enumerate(zip(units, walls, strict=True), start=1):
        now[0] += wall_s + 0.4
        progress.finish(record_of(unit.planned, unit.round, wall_s))
        left = sum(walls[number:]) + 0.4 * len(walls[number:])
        if unit.round >= 1 and left:
            assert progress.remaining_s == pytest.approx(left, rel=0.25)
    assert progress.remaining_s == 0


def test_a_continued_run_knows_its_cells_from_the_start() -> None:
    cells = planned(systems=[{"system": name} for name in COST])
    earlier = [record_of(cell, 0, COST[cell.cell.system]) for cell in cells]
    progress = Progress(schedule.todo(cells, 2, 0, []), earlier)
    assert progress.remaining_s == pytest.approx(2 * sum(COST.values()))


def test_without_a_terminal_every_cell_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    cells = planned(batch_sizes=[1, 2])
    units = schedule.todo(cells, 1, 0, [])
    progress = Progress(units)
    for unit in units:
        progress.finish(record_of(unit.planned, 0, 2.0))
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("[1/2] on-demand, batch ")
    assert " left" in first
    assert second.startswith("[2/2] on-demand, batch ")
    assert second.endswith("done")


@pytest.mark.parametrize(("seconds", "text"), [(0.2, "1 s"), (89, "89 s"), (91, "2 min"), (3600, "1 h 00 min")])
def test_a_span_reads_as_people_say_it(seconds: float, text: str) -> None:
    assert span(seconds) == text
