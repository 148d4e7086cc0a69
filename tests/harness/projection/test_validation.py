"""Replayed cells move exactly the measured bytes, and held-out cells are predicted within 15 %."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.projection import cells, validate
from harness.projection.traces import TraceError
from reports.results.record import ResultFile
from tests.harness.projection.small_model import FULL, RECORDS


def test_cells_are_read_from_records_with_their_engine_options() -> None:
    loaded = cells.load([FULL / "quick.jsonl"])
    systems = {(m.cell.system, m.options.placement, m.options.gamma) for m in loaded}
    assert ("on-demand", "on-demand", 0) in systems
    assert ("caching", "lfu", 0) in systems
    assert ("specmoe", "lfu", 5) in systems
    assert not any(m.options.controller == "auto" for m in loaded)
    plain = {cells.trace_file(m, RECORDS / "traces") for m in loaded if not m.options.speculates}
    assert len(plain) == 3  # one per batch size: tokens do not depend on the policy


def test_emulated_cells_are_not_predicted_as_this_machine(tmp_path: Path) -> None:
    records = ResultFile(FULL / "quick.jsonl").read()
    plain = next(r for r in records if r.cell.system == "on-demand")
    results = ResultFile(tmp_path / "results.jsonl")
    results.append(plain.model_copy(update={"kind": "emulated"}))
    assert cells.load([results.path]) == []
    results.append(plain)
    assert [m.cell for m in cells.load([results.path])] == [plain.cell]


@pytest.fixture(scope="module")
def checked() -> validate.Validation:
    return validate.validate([FULL / "quick.jsonl"], RECORDS / "traces")


def test_replayed_cells_move_exactly_the_measured_bytes(checked: validate.Validation) -> None:
    assert len(checked.predictions) == 15
    assert all(p.bytes_error == 0 for p in checked.predictions)
    for one in checked.predictions:
        assert one.hit_rate == pytest.approx(one.measured.hits / one.measured.requests)


def test_held_out_cells_are_predicted_within_fifteen_percent(checked: validate.Validation) -> None:
    assert {p.measured.cell.system for p in checked.held_out} == {"caching"}
    assert checked.median_error <= 0.15
    assert checked.median_own_link_error <= 0.15


def test_a_missing_trace_is_an_error_that_says_how_to_record_it(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="trace record"):
        validate.validate([FULL / "quick.jsonl"], tmp_path)


def test_validation_without_calibration_cells_is_refused() -> None:
    with pytest.raises(ValueError, match="no calibration cell"):
        validate.validate([FULL / "ablation-n.jsonl"], RECORDS / "traces")
