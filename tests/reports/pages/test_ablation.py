"""The ablation document compares settings within a round and gives every choice a verdict, from records alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from reports.pages.ablation import write_ablation
from reports.results.load import ReportError
from reports.results.metrics import Metrics
from reports.results.record import Cell, Limit, Record, ResultFile
from reports.results.repetition import Repetition
from tests import ROOT


def _record(
    label: str,
    speed: float,
    rnd: int,
    name: str = "ablation-x",
    prefetched: int | None = None,
    options: dict[str, Any] | None = None,
    tokens_per_step: float = 3.5,
) -> Record:
    cell = Cell(
        system="specmoe",
        options={"label": label} if options is None else options,
        model="m",
        batch_size=2,
        new_tokens=11,
        expert_budget_bytes=10**8,
    )
    metrics = Metrics(
        prefill_tok_s=1,
        decode_tok_s=speed,
        ttft_s=1,
        tpot_s=1,
        tokens_per_step=tokens_per_step,
        hit_rate=0.25,
        fidelity=1.0,
    )
    repetition = Repetition(
        prefill_s=1,
        decode_s=1,
        prompt_tokens=4,
        new_tokens=22,
        decode_steps=5,
        phases_s={"draft": 0.2, "verify": 0.1, "link_wait": 0.04},
        cycles=[{"gamma": 4}, {"gamma": 0}],
        prefetched_bytes=prefetched,
        prefetch_useful_bytes=None if prefetched is None else prefetched // 2,
    )
    labels = ["first", "second"] if name.startswith("ablation") else ["controller", "fixed"]
    systems = [{"system": "specmoe", "label": label} for label in labels]
    return Record(
        run_id="r",
        cell_id=f"{name}-{label}",
        round=rnd,
        status="ok",
        label=label,
        cell=cell,
        started_at="2026-01-01T00:00:00+00:00",
        wall_s=1,
        limit=Limit(enforced=False, mechanism="none", limit_bytes=None),
        metrics=metrics,
        repetitions=[repetition],
        environment={"cpu": "a processor", "cores": 2, "torch": "2", "date": "2026-01-01"},
        config={"name": name, "title": "A choice", "systems": systems},
    )


def _page(tmp_path: Path, records: list[Record]) -> str:
    results = ResultFile(tmp_path / "results.jsonl")
    results.path.unlink(missing_ok=True)
    for record in records:
        results.append(record)
    return write_ablation([results.path], tmp_path / "ablation.md").read_text()


def test_rows_are_compared_with_the_first_system_within_a_round(tmp_path: Path) -> None:
    page = _page(
        tmp_path,
        [_record("second", 30, 0), _record("first", 10, 0), _record("first", 20, 1), _record("second", 60, 1)],
    )
    rows = [line for line in page.splitlines() if line.startswith(("| first", "| second"))]
    assert rows[0] == "| first | 3.500 | – | 0.250 | – | 10.00 / 5.00 / 2.00 | 15.0 | 1 |"
    assert rows[1].endswith("| 45.0 | 3.00× [3.00, 3.00] |")
    assert "specmoe-bench run ablation-x" in page
    assert "a processor, 2 cores" in page


def test_sections_of_the_same_title_are_distinguished_by_model_and_name_their_commands(tmp_path: Path) -> None:
    other = _record("first", 20, 0, "x-of-another")
    told = {"cell": other.cell.model_copy(update={"model": "another"})}
    told |= {"environment": other.environment | {"command": "specmoe-bench run all --only x-of-another"}}
    page = _page(tmp_path, [_record("first", 10, 0), other.model_copy(update=told)])
    assert [line for line in page.splitlines() if line.startswith("### ")] == [
        "### A choice, m",
        "### A choice, another",
    ]
    assert "`specmoe-bench run ablation-x --report`: m," in page
    assert "`specmoe-bench run all --only x-of-another`: another," in page


def test_prefetched_bytes_have_a_column_only_where_something_was_prefetched(tmp_path: Path) -> None:
    assert "prefetched" not in _page(tmp_path, [_record("first", 1, 0)])
    assert "| 8: 50 % / 0 % / 0 % |" in _page(tmp_path, [_record("first", 1, 0, prefetched=8_000_000)])


def _grid(tmp_path: Path, controller: list[float], fixed: list[float], caching: list[float]) -> str:
    return _page(tmp_path, _rounds("controller-a", controller, fixed, caching))


def _rounds(name: str, controller: list[float], fixed: list[float], caching: list[float]) -> list[Record]:
    records = []
    for rnd, speeds in enumerate(zip(controller, fixed, caching, strict=True)):
        rows = [_record(label, v, rnd, name) for label, v in zip(_GRID, speeds, strict=True)]
        caching_cell = rows[2].cell.model_copy(update={"system": "caching"})
        records += [*rows[:2], rows[2].model_copy(update={"cell": caching_cell})]
    return records


_GRID = ("controller", "fixed", "LFU")


def test_the_controller_is_compared_with_the_best_other_setting_and_with_caching(tmp_path: Path) -> None:
    page = _grid(tmp_path, [20], [10], [5])
    row = "| m | 100 | 2 | fixed | 2.00× (n=1) | 4.00× (n=1) | drafted in 50 % of cycles, mean gamma 4.0 |"
    assert row in page
    assert "Over caching: 4.00× (n=1), geometric mean of 1 cells; 1 of them reach 0.95×; no interval lies" in page


def test_a_cell_where_the_controller_stays_behind_beyond_the_noise_is_named(tmp_path: Path) -> None:
    page = _grid(tmp_path, [9, 9, 9], [10, 10, 10], [8, 10, 9])
    assert "Over the best other setting: 0.90×" in page
    assert "0 of them reach 0.95×; intervals entirely below it: m with 100 MB at batch 2 (0.90× [0.90, 0.90])." in page
    assert "1 of them reach 0.95×; no interval lies entirely below it." in page


def test_cells_measured_in_more_rounds_have_a_table_of_their_own(tmp_path: Path) -> None:
    records = [*_rounds("controller-a", [20], [10], [5]), *_rounds("controller-again-a", [9] * 8, [10] * 8, [9] * 8)]
    _, grid, again = _page(tmp_path, records).split("### The controller ")
    assert "2.00× (n=1)" in grid
    assert "0.90×" not in grid
    assert "entirely below it: m with 100 MB at batch 2 (0.90× [0.90, 0.90])." in again


def _choices(page: str) -> dict[str, list[str]]:
    """The rows of the opening table by option."""
    opening = page.split("## Appendix", maxsplit=1)[0]
    rows = [line.strip("| ").split(" | ") for line in opening.splitlines() if line.startswith("| `")]
    return {row[0]: row[1:] for row in rows}


def _selections(speeds: dict[str, list[float]], **more: Any) -> list[Record]:
    return [
        _record(name, speed, rnd, options={} if name == "hot-temporal" else {"selection": name}, **more)
        for name, measured in speeds.items()
        for rnd, speed in enumerate(measured)
    ]


def test_the_page_opens_with_the_default_of_each_choice_against_the_simplest_and_the_best(tmp_path: Path) -> None:
    records = _selections({"random": [5, 10], "hot-global": [8, 16]}, tokens_per_step=3.0)
    records += _selections({"hot-temporal": [10, 20]})
    rows = _choices(_page(tmp_path, records))
    random, best = "2.00× [2.00, 2.00] `random`", "1.25× [1.25, 1.25] `hot-global`"
    assert rows == {"`selection`": ["hot-temporal", random, best, "1", "default is fastest"]}


@pytest.mark.parametrize(
    ("ours", "verdict"),
    [([5, 5], "alternative is faster"), ([9, 11], "no clear difference"), ([20, 20], "default is fastest")],
)
def test_the_verdict_follows_the_interval(tmp_path: Path, ours: list[float], verdict: str) -> None:
    default = _selections({"hot-temporal": ours}, tokens_per_step=3.0)
    rows = _choices(_page(tmp_path, [*_selections({"random": [10, 10]}), *default]))
    assert rows["`selection`"][-1] == verdict


def test_a_difference_of_speed_alone_is_called_the_same_work(tmp_path: Path) -> None:
    rows = _choices(_page(tmp_path, _selections({"random": [5, 5], "hot-temporal": [10, 10]})))
    assert rows["`selection`"][-1] == "same work done"


def test_settings_that_differ_in_two_options_are_not_compared(tmp_path: Path) -> None:
    both = [_record("both", 9, 0, options={"selection": "random", "gamma": 2}), _record("default", 8, 0, options={})]
    assert _choices(_page(tmp_path, both)) == {}


def test_the_controller_has_a_row_over_its_grid(tmp_path: Path) -> None:
    rows = _choices(_grid(tmp_path, [20, 20], [10, 10], [5, 5]))
    caching, best = "4.00× [4.00, 4.00] `caching`", "2.00× [2.00, 2.00] `best setting`"
    assert rows["`controller`: auto"] == ["fixed", caching, best, "1", "auto is faster"]


@pytest.mark.slow
def test_the_committed_document_holds_the_committed_records(tmp_path: Path) -> None:
    records = ROOT / "docs" / "records"
    swept = [
        path for name in ("ablation", "n", "selection", "substitution") for path in _sorted(records / "full", name)
    ]
    found = [*swept, *_sorted(records, "ablation"), *_sorted(records, "controller")]
    committed = ROOT / "docs" / "ablation.md"
    again = write_ablation(found, tmp_path / "ablation.md")
    assert again.read_text() == committed.read_text(), "run the command in the README"


def _sorted(folder: Path, prefix: str) -> list[Path]:
    return sorted(folder.glob(f"{prefix}-*.jsonl"))


def test_no_finished_cell_is_an_error(tmp_path: Path) -> None:
    failed = _record("first", 1, 0).model_copy(update={"status": "failed", "metrics": None})
    with pytest.raises(ReportError, match="run the ablation presets first"):
        _page(tmp_path, [failed])
