"""Any bad input ends with one clear line and exit code 2; no traceback without --debug, nothing is overwritten."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from harness.cli import main as cli
from harness.plan.errors import ConfigError
from harness.plan.experiment import plan, validate
from reports.results.load import ReportError, load
from reports.results.record import RecordError, ResultFile
from specmoe.errors import StoreError
from specmoe.model.convert import build_store
from specmoe.offload.store import INDEX, ExpertStore
from tests.conftest import VOCAB, examples
from tests.harness.experiments import MINIMAL, SIZES
from tests.reports.records import bare_record
from workloads.models import store_path

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
NOWHERE = MINIMAL | {"model": "/no/such/model", "rounds": 1}  # even a valid experiment ends before anything runs
FUZZ = settings(
    max_examples=examples(60), suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def refused(arguments: list[str]) -> str:
    """Run a command that must end with one line of error and code 2; returns the line."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        code = cli.main(arguments)
    text = err.getvalue()
    assert code == 2, f"{code}: {out.getvalue()} {text}"
    assert text.startswith("specmoe-bench: ")
    assert text.count("\n") == 1, text
    assert "Traceback" not in text
    assert "add --debug before the command" not in text, f"an unexpected error: {text}"
    return text


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def paths(node: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every node in nested data."""
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [prefix, *(place for key, child in children for place in paths(child, (*prefix, key)))]


def replaced(node: Any, place: tuple[Any, ...], value: Any) -> Any:
    if not place:
        return value
    copy = dict(node) if isinstance(node, dict) else list(node)
    copy[place[0]] = replaced(node[place[0]], place[1:], value)
    return copy


def mutated(original: Any) -> st.SearchStrategy[Any]:
    """``original`` with one node replaced by arbitrary JSON."""
    return st.tuples(st.sampled_from(paths(original)), JSON).map(lambda change: replaced(original, *change))


FULL = NOWHERE | {
    "systems": [{"system": "specmoe", "options": {"gamma": [2, 4], "draft_experts": 8}, "expert_budget": "10%"}],
    "expert_budget": ["25%", 1000],
    "process_overhead": "1MB",
    "disk_read_limit": "5MB",
    "timeout_s": 5,
    "threads": [1, 2],
}


class TestExperiments:
    @FUZZ
    @given(mutated(FULL))
    def test_any_changed_field(self, payload: Any) -> None:
        with folder() as place:
            file = place / "e.yaml"
            file.write_text(yaml.safe_dump(payload, allow_unicode=True), encoding="utf-8")
            (place / "out").mkdir()
            (place / "out" / "results.jsonl").write_text("precious\n")
            before = contents(place)
            refused(["run", str(file), "--out", str(place / "out")])
            assert contents(place) == before

    @FUZZ
    @given(mutated(FULL | {"model": "m"}))
    def test_planning_a_changed_field_gives_cells_or_one_kind_of_error(self, payload: Any) -> None:
        with contextlib.suppress(ConfigError):
            assert plan(validate(payload, "fuzz"), SIZES)

    @FUZZ
    @given(st.binary(max_size=200))
    def test_any_bytes(self, data: bytes) -> None:
        with folder() as place:
            (place / "e.yaml").write_bytes(data)
            refused(["run", str(place / "e.yaml"), "--out", str(place / "out")])
            assert not (place / "out").exists()

    @FUZZ
    @given(st.text(max_size=30), st.text(max_size=20))
    @example("-", "")
    def test_any_assignment(self, path: str, value: str) -> None:
        with folder() as place:
            (place / "e.yaml").write_text(json.dumps(NOWHERE))
            refused(["run", str(place / "e.yaml"), f"--set={path}={value}"])  # as one word, it may begin with a dash


class TestRecords:
    LINE: dict[str, Any] = json.loads(bare_record().model_dump_json())

    @FUZZ
    @given(mutated(LINE))
    def test_any_changed_field(self, payload: Any) -> None:
        with folder() as place:
            file = place / "results.jsonl"
            file.write_text(json.dumps(payload) + "\n")
            before = contents(place)
            for read, error in ((ResultFile(file).read, RecordError), (lambda: load([file]), ReportError)):
                with contextlib.suppress(error):
                    read()
            assert contents(place) == before

    @FUZZ
    @given(st.binary(max_size=300))
    def test_any_bytes_are_refused_by_every_reader(self, data: bytes) -> None:
        with folder() as place:
            file = place / "results.jsonl"
            file.write_bytes(data)
            refused(["report", str(file)])
            refused(["export", str(file), "--out", str(place / "t.csv")])
            assert contents(place) == {"results.jsonl": data}

    @FUZZ
    @given(st.binary(max_size=300))
    def test_any_bytes_as_a_baseline_are_refused(self, data: bytes) -> None:
        with folder() as place:
            (place / "baseline.jsonl").write_bytes(data)
            refused(["check", "--against", str(place / "baseline.jsonl"), "--out", str(place / "out")])
            assert contents(place) == {"baseline.jsonl": data}

    @FUZZ
    @given(st.binary(max_size=60), st.integers(0, 400))
    def test_bytes_written_over_a_result_file_cost_the_lines_they_hit(self, data: bytes, at: int) -> None:
        with folder() as place:
            file = ResultFile(place / "results.jsonl")
            for number in range(3):
                file.append(bare_record(number))
            whole = file.path.read_bytes()
            file.path.write_bytes(whole[:at] + data + whole[at + len(data) :])
            with warnings.catch_warnings(), contextlib.suppress(RecordError):
                warnings.simplefilter("ignore")
                assert [r.round for r in file.read()][-2:] == [1, 2]

    def test_folders_and_missing_files(self, tmp_path: Path) -> None:
        for name in (tmp_path, tmp_path / "none"):
            refused(["report", str(name)])
            refused(["export", str(name), "--out", str(tmp_path / "t.csv")])
            refused(["check", "--against", str(name)])
            refused(["check", "--against", str(name), "--max-slowdown", "fast"])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, tiny: tuple[Path, Any]) -> Path:
    """A small checkpoint with a tokenizer."""
    out = tmp_path_factory.mktemp("checkpoint") / "tiny"
    shutil.copytree(tiny[0], out)
    tokenizer = Tokenizer(WordLevel({f"<{i}>": i for i in range(VOCAB)}, unk_token="<0>"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<0>", pad_token="<0>").save_pretrained(out)
    return out


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Path:
    """A small store, for copies of it to be damaged."""
    out = tmp_path_factory.mktemp("fuzz") / "store"
    build_store(checkpoint, out, torch.float32)
    return out


class TestStores:
    @FUZZ
    @given(data=st.data())
    def test_any_changed_field_of_the_index(self, store: Path, data: st.DataObject) -> None:
        index = json.loads((store / INDEX).read_text())
        payload = data.draw(mutated(index))
        with folder() as place:
            copy = place / "store"
            shutil.copytree(store, copy)
            (copy / INDEX).write_text(json.dumps(payload))
            before = contents(copy)
            with contextlib.suppress(StoreError):
                ExpertStore.open(copy).verify()
            assert contents(copy) == before

    @FUZZ
    @given(st.binary(max_size=200))
    def test_any_bytes_for_an_index_are_refused_by_the_command_line(
        self, store: Path, checkpoint: Path, data: bytes
    ) -> None:
        with folder() as place, pytest.MonkeyPatch.context() as patch:
            patch.setenv("SPECMOE_CACHE", str(place / "cache"))
            copy = store_path(str(checkpoint), "float32")
            shutil.copytree(store, copy)
            (copy / INDEX).write_bytes(data)
            before = contents(place)
            (place / "e.yaml").write_text(json.dumps(MINIMAL | {"model": str(checkpoint)}))
            assert str(copy) in refused(["run", str(place / "e.yaml"), "--out", str(place / "out")])
            (place / "e.yaml").unlink()
            assert contents(place) == before


def test_an_unexpected_error_is_one_line_and_debug_shows_the_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> None:
        raise KeyError("oops")

    monkeypatch.setattr("harness.machine.doctor.examine", broken)
    assert cli.main(["doctor"]) == 2
    error = capsys.readouterr().err
    assert "unexpected KeyError: 'oops'" in error
    assert error.count("\n") == 1
    with pytest.raises(KeyError):
        cli.main(["--debug", "doctor"])
