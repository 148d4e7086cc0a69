"""The documented schema is current, older lines stay readable, and every figure can be exported."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pandas as pd
import pytest
import yaml

from harness.cli import main as cli
from reports.pages.export import export, frame_of
from reports.results import schema
from reports.results.lines import DamagedLine, seal, unseal
from reports.results.load import ReportError, load
from reports.results.migrate import SCHEMA, upgrade
from reports.results.record import Record, RecordError, ResultFile
from tests import ROOT
from tests.reports.records import experiment, write

FIRST = ROOT / "tests" / "data" / "first_v1.jsonl"


def test_the_documented_schema_is_current() -> None:
    fix = "run `python -m reports.results.schema`"
    assert (schema.DOCS / "record.schema.json").read_text() == schema.schema_text(), fix
    page = (schema.DOCS / "record.md").read_text()
    assert page == schema.document(page), fix


def test_written_lines_satisfy_the_documented_schema(tmp_path: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    documented = json.loads((schema.DOCS / "record.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(documented)
    validator = jsonschema.Draft202012Validator(documented)
    path = write(tmp_path / "r.jsonl", *experiment([10, 11], [5, 6]))
    lines = [upgrade(json.loads(line)) for line in [*path.read_text().splitlines(), FIRST.read_text()]]
    for line in lines:
        validator.validate(line)
    assert not validator.is_valid(lines[0] | {"surprise": 1})
    assert not validator.is_valid(lines[0] | {"wall_s": "long"})


def test_every_object_of_the_record_is_in_the_page() -> None:
    page = (schema.DOCS / "record.md").read_text()
    for name in Record.model_fields:
        assert f"| `{name}` |" in page


def test_lines_of_the_first_release_are_read_and_keep_their_cell_id() -> None:
    (record,) = ResultFile(FIRST).read()
    assert record.attempt == 1
    assert record.usage is None
    assert record.cell.cell_id == record.cell_id, "a finished cell of an older run would be run again"
    assert len(load([FIRST])) == 1


def test_experts_of_older_lines_were_stored_in_the_dtype_computed_in() -> None:
    (record,) = ResultFile(FIRST).read()
    cell = record.cell
    assert cell.stored_dtype is None
    assert cell.stored == "float32"
    same = cell.model_copy(update={"stored_dtype": "float32"})
    assert (same.cell_id, same.conditions) == (cell.cell_id, cell.conditions)
    narrower = cell.model_copy(update={"stored_dtype": "bfloat16"})
    assert narrower.cell_id != cell.cell_id
    assert narrower.conditions != cell.conditions


def test_the_reason_of_a_cycle_is_read_under_its_older_name(tmp_path: Path) -> None:
    first = json.loads(FIRST.read_text())
    first["repetitions"][0]["cycles"] = [{"gamma": 2, "why": "fixed"}]
    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps(first) + "\n")
    assert ResultFile(path).read()[0].repetitions[0].cycles == [{"gamma": 2, "reason": "fixed"}]
    assert load([path])["record"][0]["repetitions"][0]["cycles"] == [{"gamma": 2, "reason": "fixed"}]


def test_the_reason_of_a_limit_is_read_under_its_older_name(tmp_path: Path) -> None:
    first = json.loads(FIRST.read_text())
    del first["limit"]["why_not"]
    first["limit"] |= {"enforced": False, "why_not": "no cgroup"}
    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps(first) + "\n")
    assert ResultFile(path).read()[0].limit.reason == "no cgroup"
    assert load([path])["limit_reason"][0] == "no cgroup"


def test_the_placement_of_the_caching_system_is_read_under_its_older_name(tmp_path: Path) -> None:
    first = json.loads(FIRST.read_text())
    first["cell"] |= {"system": "caching", "options": {"policy": "lfu"}}
    systems = [
        {"system": "caching", "options": {"policy": ["lru", "lfu"]}},
        {"system": "other", "options": {"policy": 1}},
    ]
    first["config"] |= {"systems": systems}
    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps(first) + "\n")
    (record,) = ResultFile(path).read()
    assert record.cell.options == {"placement": "lfu"}
    assert record.cell_id == first["cell_id"], "a line keeps the id it was written with"
    assert [entry["options"] for entry in record.config["systems"]] == [{"placement": ["lru", "lfu"]}, {"policy": 1}]
    assert load([path])["options"][0] == '{"placement": "lfu"}'


def test_committed_records_of_the_caching_system_name_its_placement() -> None:
    options = [
        record.cell.options
        for path in sorted((ROOT / "docs" / "records").rglob("*.jsonl"))
        for record in ResultFile(path).read()
        if record.cell.system == "caching"
    ]
    assert {"placement": "lfu"} in options
    assert all(names <= {"placement"} for names in map(set, options))


def test_older_schemas_are_brought_forward_step_by_step() -> None:
    steps = {
        "s/1": (
            "s/2",
            lambda payload: {k: v for k, v in payload.items() if k != "speed"} | {"tok_s": payload["speed"]},
        ),
        "s/2": ("s/3", lambda payload: payload | {"tok_s": float(payload["tok_s"])}),
    }
    old = {"schema_version": "s/1", "speed": "4"}
    assert upgrade(old, steps, "s/3") == {"schema_version": "s/3", "tok_s": 4.0}
    assert old == {"schema_version": "s/1", "speed": "4"}, "the caller's line is left alone"


def test_records_bear_the_titles_of_the_experiments_of_today() -> None:
    titles = {
        path.stem: yaml.safe_load(path.read_text())["title"] for path in (ROOT / "harness/plan/presets").glob("*")
    }
    for path in sorted((ROOT / "docs" / "records" / "full").glob("ablation-*.jsonl")):
        with path.open() as lines:
            config = upgrade(json.loads(next(lines)))["config"]
        assert config["title"] == titles[config["name"]]


@pytest.mark.parametrize("version", ["specmoe-bench.result/9", None, 3, ["x"]])
def test_an_unknown_schema_is_refused_with_the_fix(tmp_path: Path, version: object) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps({"schema_version": version}) + "\n")
    for error, read in ((RecordError, ResultFile(path).read), (ReportError, lambda: load([path]))):
        with pytest.raises(error, match=rf"r\.jsonl:1 has schema .*reads {SCHEMA}: measure again"):
            read()


def test_a_cycle_of_steps_is_an_error() -> None:
    with pytest.raises(ValueError, match="s/1"):
        upgrade({"schema_version": "s/1"}, {"s/1": ("s/1", dict)}, "s/2")


def test_any_changed_byte_breaks_the_seal() -> None:
    line = seal('{"a":1,"b":"text"}')
    assert unseal(line) == {"a": 1, "b": "text"}
    for position in range(len(line)):
        changed = line[:position] + chr(ord(line[position]) ^ 1) + line[position + 1 :]
        try:
            payload = unseal(changed)
        except DamagedLine:
            continue
        assert set(payload) - {"a", "b"}, f"a change at {position} went unnoticed"


@pytest.mark.parametrize("suffix", [".csv", ".json", ".parquet", ".md"])
def test_records_are_exported_with_every_figure(tmp_path: Path, suffix: str) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    path = write(tmp_path / "r.jsonl", *experiment([10, 11], [5, 6]))
    out = tmp_path / f"table{suffix}"
    assert cli.main(["export", str(path), "--out", str(out)]) == 0
    if suffix == ".md":
        assert len(out.read_text().splitlines()) == 2 + 4
        return
    read = {".csv": pd.read_csv, ".json": pd.read_json, ".parquet": pd.read_parquet}[suffix]
    frame = read(out)
    assert frame["decode_tok_s"].tolist() == [5, 10, 6, 11]
    assert json.loads(frame["options"][0]) == {}
    assert frame["environment_cpu"][0] == "a processor"


def test_raw_repetitions_are_exported_too(tmp_path: Path) -> None:
    path = write(tmp_path / "r.jsonl", *experiment([10, 11], [5, 6]))
    frame = frame_of([path], "repetitions")
    assert frame["repetition"].tolist() == [0, 0, 0, 0]
    assert frame["raw_decode_steps"].tolist() == [15] * 4
    assert not math.isnan(frame["raw_prefill_s"][0])


def test_an_export_overwrites_nothing_unless_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "r.jsonl", *experiment([10], [5]))
    out = tmp_path / "table.csv"
    out.write_text("mine")
    assert cli.main(["export", str(path), "--out", str(out)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert out.read_text() == "mine"
    assert export([path], out, overwrite=True) == 2
    assert cli.main(["export", str(path), "--out", str(tmp_path / "table.xls")]) == 2


def test_ids_of_committed_cells_are_those_of_their_cells_as_they_are_read() -> None:
    renamed = 0
    for path in sorted((ROOT / "docs" / "records").rglob("*.jsonl")):
        ids = [json.loads(line)["cell_id"] for line in path.read_text().splitlines()]
        records = ResultFile(path).read()
        assert [record.cell.cell_id for record in records] == [record.cell_id for record in records], path
        renamed += sum(record.cell_id != before for record, before in zip(records, ids, strict=True))
    assert renamed, "the committed caching cells were named by their older option"
