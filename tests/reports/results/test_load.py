"""Result files load as one row per record; damaged or foreign lines are named with file and line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from reports.pages.export import frame_of
from reports.results import files
from reports.results.aggregate import summarize
from reports.results.load import ReportError, load, workload_names
from reports.results.metrics import METRICS
from reports.results.migrate import SCHEMA
from tests.reports.records import BUDGET, experiment, record, summary_of, write


def test_every_record_becomes_a_row_with_its_parsed_line(tmp_path: Path) -> None:
    frame = load([write(tmp_path / "a.jsonl", *experiment([8, 9], [4, 4]))])
    assert len(frame) == 4
    assert set(METRICS) <= set(frame.columns)
    assert frame["record"][0]["cell"]["system"] == frame["system"][0] == "on-demand"
    assert frame["limit_enforced"].all()


def test_stored_dtypes_are_tables_of_their_own_and_named(tmp_path: Path) -> None:
    one = record("on-demand", 4)
    cells = [one.cell.model_copy(update={"stored_dtype": stored}) for stored in (None, "float32", "bfloat16")]
    changed = [one.model_copy(update={"cell": cell, "cell_id": cell.cell_id}) for cell in cells]
    frame = load([write(tmp_path / f"{number}.jsonl", one) for number, one in enumerate(changed[1:])])
    older = load([write(tmp_path / "older.jsonl", changed[0])])
    assert older["workload"][0] == frame["workload"][0] != frame["workload"][1]
    assert list(frame["stored_dtype"]) == ["float32", "bfloat16"]
    names = list(workload_names(frame).values())
    assert names == ["embedded, float32, 16 new tokens", "embedded, float32, experts stored in bfloat16, 16 new tokens"]


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match=r"nowhere\.jsonl"):
        load([tmp_path / "nowhere.jsonl"])


def test_empty_results_say_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "empty.jsonl"
    path.touch()
    with pytest.raises(ReportError, match="specmoe-bench run"):
        load([path])


def test_a_damaged_line_is_skipped_with_a_warning(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", record("on-demand", 4))
    whole = path.read_text()
    path.write_text(whole + whole[:40])
    with pytest.warns(UserWarning, match=r"a\.jsonl:2: damaged line"):
        frame = load([path])
    assert len(frame) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": "specmoe-bench.result/9"}, "result/9"),
        ({"schema_version": None}, "schema None"),
        ({"cell": {"system": "x"}}, r"lacks cell\.model, cell\.batch_size"),
        ({"metrics": None}, "lacks metrics"),
        ({"metrics": {"decode_tok_s": "fast"}}, "'fast', not a finite number"),
    ],
)
def test_a_line_that_is_not_a_record_is_named_with_file_and_line(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = write(tmp_path / "a.jsonl", record("on-demand", 4))
    payload = json.loads(path.read_text()) | change
    del payload["checksum"]  # it seals the unchanged line
    path.write_text(path.read_text() + json.dumps(payload) + "\n")
    with pytest.raises(ReportError, match=r"a\.jsonl:2.*" + message):
        load([path])


def test_json_that_is_not_an_object_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("[1]\n")
    with pytest.raises(ReportError, match=rf"a\.jsonl:1 is not a {SCHEMA} record"):
        load([path])


def test_a_record_written_again_replaces_the_earlier_one(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", record("on-demand", None, status="failed"), record("on-demand", 4))
    with pytest.warns(UserWarning, match="replaced by another one"):
        frame = load([path])
    assert list(frame["status"]) == ["ok"]


def test_a_finished_record_is_not_replaced_by_a_later_failure(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", record("on-demand", 4), record("on-demand", None, status="failed"))
    with pytest.warns(UserWarning, match="replaced by another one"):
        frame = load([path])
    assert list(frame["status"]) == ["ok"]
    assert list(frame["failed_attempts"]) == [1]


def test_a_file_named_twice_counts_once_in_report_compare_and_export(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", record("on-demand", 4), record("specmoe", 8))
    with pytest.warns(UserWarning, match="replaced by another one"):
        frame = load([path] * 6)
    assert summarize(frame)["speedup_n"].max() == 1
    with pytest.warns(UserWarning, match="replaced by another one"):
        assert len(frame_of([path] * 6)) == 2


def test_one_label_for_two_budgets_gives_two_titles_and_no_average(tmp_path: Path) -> None:
    summary, _ = summary_of(tmp_path, [record("caching", 4), record("caching", 8, budget=3 * BUDGET)])
    assert sorted(summary["title"]) == ["caching (100 MB)", "caching (300 MB)"]
    assert sorted(summary["decode_tok_s"]) == [4, 8]


def test_workloads_are_never_averaged_and_each_is_named(tmp_path: Path) -> None:
    summary, frame = summary_of(tmp_path, [record("on-demand", 4), record("on-demand", 8, model="other")])
    assert len(summary) == 2
    names = workload_names(frame).values()
    assert len(set(names)) == 2
    assert any("other" in name for name in names)


def test_results_of_two_machines_are_never_averaged(tmp_path: Path) -> None:
    elsewhere = record("on-demand", 40, rnd=1, environment={"cpu": "another"})
    summary, _ = summary_of(tmp_path, [record("on-demand", 4), elsewhere])
    assert sorted(summary["decode_tok_s"]) == [4, 40]


def test_a_results_folder_stands_for_the_files_in_it(tmp_path: Path) -> None:
    write(tmp_path / "suite" / "a" / "results.jsonl", record("on-demand", 4))
    write(tmp_path / "suite" / "b" / "results.jsonl", record("caching", 4))
    write(tmp_path / "alone" / "results.jsonl", record("naive", 4))
    assert list(load([tmp_path / "suite", tmp_path / "alone"])["system"]) == ["on-demand", "caching", "naive"]
    assert files.single(tmp_path / "alone") == tmp_path / "alone" / "results.jsonl"
    with pytest.raises(ValueError, match=r"results of 2 experiments: name one of .*a/results.jsonl"):
        files.single(tmp_path / "suite")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ReportError, match=r"empty holds no results.jsonl: name a result file, or the folder of a run"):
        load([tmp_path / "empty"])
