"""Experiments and results: validated at the edge, one clear error each, nothing lost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.cli import options as options_page
from harness.plan.experiment import ConfigError, Experiment, from_yaml, plan, preset, presets, validate
from reports.results.record import Cell, Limit, Record, RecordError, ResultFile
from specmoe.sizes import parse_bytes
from tests import ROOT

MINIMAL = {"name": "x", "model": "embedded", "systems": [{"system": "on-demand"}], "batch_sizes": [1]}


def _plan(**changes: object) -> list:
    return plan(validate(MINIMAL | changes, "test"), slot_bytes=1000, total_slots=100)


def record(number: int = 0, **changes: object) -> Record:
    cell = Cell(system="on-demand", model="embedded", batch_size=1, new_tokens=4)
    fields = {
        "run_id": "r",
        "cell_id": cell.cell_id,
        "round": number,
        "status": "ok",
        "label": "on-demand",
        "cell": cell,
        "started_at": "2026-01-01T00:00:00+00:00",
        "wall_s": 1.0,
        "limit": Limit(enforced=False, mechanism="none", limit_bytes=None, why_not="test"),
    }
    return Record(**(fields | changes))


@pytest.mark.parametrize("name", presets())
def test_presets_are_valid(name: str) -> None:
    assert len(plan(preset(name), 1000, 100)) >= 2


def test_the_page_of_options_is_current_and_names_a_trial_for_each_open_choice() -> None:
    page = options_page.markdown()
    assert (ROOT / "docs" / "options.md").read_text() == page, "run `specmoe-bench options`"
    untried = [line.split("`")[1] for line in page.splitlines() if line.startswith("| `") and line.endswith("| – |")]
    assert set(untried) <= {"hot_decay", "prefetch_share", "ngram_min", "ngram_max", "seed"}


def test_listed_options_and_batches_are_swept() -> None:
    systems = [{"system": "specmoe", "options": {"gamma": [2, 4], "draft_experts": [1, 2, 3]}}]
    planned = _plan(systems=systems, batch_sizes=[1, 8])
    assert len(planned) == 12
    assert len({p.cell.cell_id for p in planned}) == 12
    assert planned[0].label == "specmoe γ=2 N=1"


def test_every_process_gets_the_same_limit_above_the_largest_budget() -> None:
    systems = [{"system": "on-demand"}, {"system": "caching", "expert_budget": "50%"}]
    planned = _plan(systems=systems, expert_budget="25%", process_overhead="1MB")
    assert [p.cell.expert_budget_bytes for p in planned] == [25_000, 50_000]
    assert {p.cell.process_limit_bytes for p in planned} == {1_050_000}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_sizes": [0]}, "batch_sizes.*1 or more"),
        ({"batch_sizes": []}, "batch_sizes"),
        ({"surprise": 1}, "surprise"),
        ({"new_tokens": 1}, "new_tokens"),
        ({"dtype": "int4"}, "dtype"),
        ({"systems": [{"system": "no-such"}]}, "unknown system 'no-such': use one of .*specmoe"),
        ({"systems": [{"system": "specmoe", "options": {"gama": 3}}]}, "option gama.*options: gamma"),
        ({"systems": [{"system": "specmoe", "options": {"gamma": 65}}]}, "option gamma"),
        ({"systems": [{"system": "on-demand"}, {"system": "on-demand", "label": "again"}]}, "same cell twice"),
        ({"expert_budget": "25 percent"}, "unknown unit"),
        ({"expert_budget": "-1MB"}, "no size|not positive"),
    ],
)
def test_a_bad_experiment_is_one_clear_error(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        _plan(**changes)


@given(st.one_of(st.none(), st.integers(), st.text(), st.lists(st.integers()), st.dictionaries(st.text(), st.text())))
def test_anything_that_is_no_experiment_is_a_config_error(payload: object) -> None:
    with pytest.raises(ConfigError):
        validate(payload, "fuzz")


def test_yaml_files_are_read_and_their_errors_name_the_file(tmp_path: Path) -> None:
    file = tmp_path / "e.yaml"
    file.write_text(json.dumps(MINIMAL))
    assert from_yaml(file) == Experiment.model_validate(MINIMAL)
    file.write_text("a: [1")
    with pytest.raises(ConfigError, match=r"e\.yaml is not YAML"):
        from_yaml(file)
    with pytest.raises(ConfigError, match="cannot read"):
        from_yaml(tmp_path / "missing.yaml")


def test_an_unknown_preset_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"use one of .*quick, smoke"):
        preset("slow")


@pytest.mark.parametrize(
    ("text", "nbytes"), [("256MB", 256_000_000), ("1.5GiB", 1_610_612_736), ("10%", 1_000), (77, 77), ("77", 77)]
)
def test_sizes_are_read(text: str | int, nbytes: int) -> None:
    assert parse_bytes(text, 10_000, "budget") == nbytes


def test_a_record_survives_the_file(tmp_path: Path) -> None:
    file = ResultFile(tmp_path / "deep" / "results.jsonl")
    written = [record(number) for number in range(3)]
    for one in written:
        file.append(one)
    assert file.read() == written


@given(st.integers(1, 400))
def test_a_line_torn_by_a_kill_costs_only_itself(cut: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        file = ResultFile(Path(folder) / "results.jsonl")
        file.append(record(0))
        file.append(record(1))
        whole = file.path.read_bytes()
        file.path.write_bytes(whole[:-cut])
        file.append(record(2))
        if cut > 1:  # cutting just the newline tears nothing
            with pytest.warns(UserWarning, match="torn line"):
                assert [r.round for r in file.read()] == [0, 2]
        else:
            assert [r.round for r in file.read()] == [0, 1, 2]


def test_a_malformed_record_names_line_field_and_mend(tmp_path: Path) -> None:
    file = ResultFile(tmp_path / "r.jsonl")
    file.append(record())
    with file.path.open("a") as out:
        out.write('{"schema_version": "specmoe-bench.result/2", "round": -1}\n')
    with pytest.raises(RecordError, match=r"r\.jsonl:2 is not a specmoe-bench\.result/2 record.*remove that line"):
        file.read()


def test_a_missing_file_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="specmoe-bench run"):
        ResultFile(tmp_path / "none.jsonl").read()


def test_a_cell_id_depends_on_every_field() -> None:
    base = Cell(system="a", model="m", batch_size=1, new_tokens=4)
    others = [
        base.model_copy(update=change)
        for change in ({"system": "b"}, {"batch_size": 2}, {"options": {"gamma": 1}}, {"expert_budget_bytes": 5})
    ]
    assert len({c.cell_id for c in [base, *others]}) == 5
