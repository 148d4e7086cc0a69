"""Result files lose nothing: a record survives the file, a torn line costs only itself, errors name line and fix."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports.results.record import Cell, RecordError, ResultFile
from tests.reports.records import bare_record


def test_a_record_survives_the_file(tmp_path: Path) -> None:
    file = ResultFile(tmp_path / "deep" / "results.jsonl")
    written = [bare_record(number) for number in range(3)]
    for one in written:
        file.append(one)
    assert file.read() == written


@given(st.integers(1, 400))
def test_a_line_torn_by_a_kill_costs_only_itself(cut: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = ResultFile(Path(folder) / "results.jsonl")
        file.append(bare_record(0))
        file.append(bare_record(1))
        whole = file.path.read_bytes()
        file.path.write_bytes(whole[:-cut])
        file.append(bare_record(2))
        if cut > 1:  # cutting just the newline tears nothing
            with pytest.warns(UserWarning, match="damaged line"):
                assert [r.round for r in file.read()] == [0, 2]
        else:
            assert [r.round for r in file.read()] == [0, 1, 2]


def test_a_byte_order_mark_costs_no_record(tmp_path: Path) -> None:
    file = ResultFile(tmp_path / "results.jsonl")
    file.append(bare_record(0))
    file.path.write_bytes(b"\xef\xbb\xbf" + file.path.read_bytes().replace(b"\n", b"\r\n"))
    assert file.read() == [bare_record(0)]


def test_a_malformed_record_names_line_field_and_fix(tmp_path: Path) -> None:
    file = ResultFile(tmp_path / "r.jsonl")
    file.append(bare_record())
    with file.path.open("a") as out:
        out.write('{"schema_version": "specmoe-bench.result/1", "round": -1}\n')
    with pytest.raises(RecordError, match=r"r\.jsonl:2 is not a specmoe-bench\.result/\d record.*remove that line"):
        file.read()


def test_a_missing_file_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="specmoe-bench run"):
        ResultFile(tmp_path / "none.jsonl").read()


def test_a_cell_id_depends_on_every_field() -> None:
    base = Cell(system="a", model="m", batch_size=1, new_tokens=4)
    others = [
        base.model_copy(update=change)
        for change in (
            {"system": "b"},
            {"batch_size": 2},
            {"options": {"gamma": 1}},
            {"expert_budget_bytes": 5},
            {"prompts": "questions"},
            {"disk_read_limit_bytes_s": 1},
            {"device": "cuda"},
            {"slow_tier": "host"},
        )
    ]
    assert len({c.cell_id for c in [base, *others]}) == 9


def test_only_cells_that_differ_in_system_options_or_budget_are_compared() -> None:
    base = Cell(system="a", model="m", batch_size=1, new_tokens=4)
    alike = base.model_copy(update={"system": "b", "options": {"gamma": 1}, "expert_budget_bytes": 5})
    assert alike.conditions == base.conditions
    for change in ({"batch_size": 2}, {"threads": 3}, {"prompts": "questions"}, {"slow_tier": "host"}):
        assert base.model_copy(update=change).conditions != base.conditions
