"""``compare``: ratios between systems across runs, revisions and machines; never a time over another machine's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.cli import main as cli
from reports.pages.compare import APART, WARNING, Comparison, compare
from reports.results.load import ReportError
from reports.results.record import Record
from tests.reports.records import record, write

HERE = {"cpu": "here", "cores": 2, "ram_bytes": 8, "torch": "2.9"}
THERE = {"cpu": "there", "cores": 64, "ram_bytes": 9, "torch": "2.9"}
CONFIG = {"name": "x", "systems": [{"system": "on-demand"}, {"system": "specmoe"}], "rounds": 3}


def run(ours: float, theirs: float, environment: dict[str, Any] = HERE, **more: Any) -> list[Record]:
    """Three rounds of both systems at batch 4, on a machine that is a little faster each round."""
    out = []
    for rnd in range(3):
        common: dict[str, Any] = {"batch": 4, "rnd": rnd, "environment": environment, "config": CONFIG} | more
        out.append(record("on-demand", theirs * (1 + rnd / 10), **common))
        out.append(record("specmoe", ours * (1 + rnd / 10), drafted=[10], accepted=[8], **common))
    return out


def both(tmp_path: Path, a: list[Record], b: list[Record]) -> Comparison:
    return compare(write(tmp_path / "a.jsonl", *a), write(tmp_path / "b.jsonl", *b))


def cells(comparison: Comparison) -> dict[str, dict[str, str]]:
    """The one cell's rows by system."""
    (table,) = comparison.cells
    return {row[0].text: dict(zip(table.headers, (cell.text for cell in row), strict=True)) for row in table.rows}


def test_a_faster_machine_makes_no_system_faster(tmp_path: Path) -> None:
    found = both(tmp_path, run(20, 10), run(200, 100, THERE))
    ours = cells(found)["specmoe"]
    assert ours["A ÷ reference"] == ours["B ÷ reference"] == "2.00× [2.00, 2.00]"
    assert (ours["B over A [95 % CI]"], ours["verdict"]) == ("1.00× [1.00, 1.00]", "no significant difference")


def test_times_of_different_machines_are_nowhere(tmp_path: Path) -> None:
    found = both(tmp_path, run(20, 10), run(260, 100, THERE))
    assert not any("tok/s" in header for header in found.cells[0].headers)
    for text in (found.as_text(), found.as_markdown()):
        assert APART in text
        assert "13.0" not in text, "that is 260 over 20"
    assert cells(found)["specmoe"]["B over A [95 % CI]"].startswith("1.30×")


def test_one_machine_shows_absolute_speed_with_a_warning(tmp_path: Path) -> None:
    found = both(tmp_path, run(20, 10), run(30, 10))
    assert WARNING in found.as_text()
    assert cells(found)["specmoe"]["B tok/s"] == "33.0"
    assert cells(found)["specmoe"]["verdict"] == "B faster"


def test_output_of_every_system_stands_side_by_side(tmp_path: Path) -> None:
    found = cells(both(tmp_path, run(20, 10), run(20, 10, fidelity=0.5)))
    assert found["specmoe"]["fidelity"] == "100.0 % → 50.0 %"
    assert found["on-demand"]["tokens per step T(γ)"] == "1.00"


def test_what_differs_between_the_runs_is_named(tmp_path: Path) -> None:
    changed = run(20, 10, HERE | {"torch": "2.10"}, config=CONFIG | {"rounds": 5})
    found = both(tmp_path, run(20, 10), changed)
    assert [[cell.text for cell in row] for row in found.differences.rows] == [
        ["config: rounds", "3", "5"],
        ["environment: torch", "2.9", "2.10"],
    ]


def test_the_limit_and_what_it_covers_are_told(tmp_path: Path) -> None:
    found = both(tmp_path, run(20, 10), run(20, 10, enforced=False))
    assert found.limits[0] == "Limit of A: 1.00 GB for the whole process, page cache included (cgroup-v2)"
    assert "not enforced" in found.limits[1]
    engine = both(tmp_path, run(20, 10), run(20, 10, covers="engine"))
    assert engine.limits[1] == "Limit of B: 1.00 GB for the system's engine, page cache included (cgroup-v2)"


def test_what_one_file_lacks_is_told(tmp_path: Path) -> None:
    extra = record("caching", 12, batch=4, environment=HERE, config=CONFIG)
    assert both(tmp_path, [*run(20, 10), extra], run(20, 10)).alone == ["Only in A: caching at batch 4."]


def test_runs_with_nothing_in_common_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="no finished cell in common"):
        both(tmp_path, run(20, 10), run(20, 10, model="another"))


def test_a_reference_that_neither_file_has_is_refused(tmp_path: Path) -> None:
    a, b = (write(tmp_path / f"{name}.jsonl", *run(20, 10)) for name in "ab")
    with pytest.raises(ReportError, match="no result of the reference 'fastest' in either file: use one of"):
        compare(a, b, reference="fastest")


def test_the_command_prints_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = (write(tmp_path / f"{n}.jsonl", *run(20, 10, where)) for n, where in (("a", HERE), ("b", THERE)))
    assert cli.main(["compare", str(a), str(b), "--out", str(tmp_path / "deep" / "compare.md")]) == 0
    assert "no significant difference" in capsys.readouterr().out
    assert (tmp_path / "deep" / "compare.md").read_text().startswith("# Comparison")
