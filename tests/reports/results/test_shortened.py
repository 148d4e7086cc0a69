"""A slow system may generate fewer tokens: its cell says so, and is compared with the others all the same."""

from __future__ import annotations

from pathlib import Path

import torch

from harness.run.worker import shortened
from reports.pages.compare import compare
from reports.pages.sections import section
from reports.results.aggregate import summarize
from reports.results.load import load
from reports.results.record import Record
from reports.wording.tables import notes
from tests.harness.experiments import planned
from tests.reports.records import record, write
from workloads.requests import Batch


def shortened_record(speed: float, rnd: int, first_tokens: int | None = 6) -> Record:
    made = record("naive", speed, rnd=rnd)
    cell = made.cell.model_copy(update={"first_tokens": first_tokens})
    return made.model_copy(update={"cell": cell, "cell_id": cell.cell_id})


def test_a_cell_is_shortened_only_where_that_leaves_something_out() -> None:
    systems = [{"system": "naive", "first_tokens": 6}, {"system": "on-demand"}]
    cells = [one.cell for one in planned(systems=systems, new_tokens=[4, 32])]
    assert [(cell.new_tokens, cell.first_tokens) for cell in cells] == [(4, None), (4, None), (32, 6), (32, None)]
    assert len({cell.conditions for cell in cells}) == 2, "shortened cells are compared with the others"
    assert cells[2].asked == cells[3].asked, "and judged by the same reference tokens"


def test_rows_end_at_the_first_tokens() -> None:
    ids = torch.zeros(2, 3, dtype=torch.long)
    batch = Batch(ids, torch.ones_like(ids), (32, 4))
    assert shortened(batch, 6).output_tokens == (6, 4)
    assert shortened(batch, None) is batch


def test_the_page_says_which_systems_stopped_early(tmp_path: Path) -> None:
    rows = [one for r in range(3) for one in (record("on-demand", 4, rnd=r), shortened_record(1, r))]
    frame = load([write(tmp_path / "a.jsonl", *rows)])
    assert frame["workload"].nunique() == 1
    summary = summarize(frame)
    naive = summary[summary["system"] == "naive"].iloc[0]
    assert naive["speedup"] == 0.25
    assert "first 6 of 16 tokens" in notes(naive.to_dict() | {"budget_differs": False})
    said = section(1, summary, frame, [], "w").fairness
    assert any("only the first of the 16 tokens" in line and "naive (the first 6)" in line for line in said)


def test_a_comparison_names_a_system_that_ran_longer_in_one_file(tmp_path: Path) -> None:
    sides = []
    for name, first in (("a", 6), ("b", None)):
        rows = [one for r in range(3) for one in (record("on-demand", 4, rnd=r), shortened_record(1, r, first))]
        sides.append(write(tmp_path / f"{name}.jsonl", *rows))
    assert "first 6 → 16 tokens of a row" in compare(*sides).as_text()
