"""A suite runs what it can: an experiment that cannot run does not stop the rest, and nothing finished runs again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from harness.cli import main as cli
from harness.cli import run as run_command
from harness.plan.schedule import Unit
from harness.run.runner import Runner
from reports.results.record import Record, ResultFile
from tests.harness.experiments import suite_file
from tests.reports.records import record

SMALL = {
    "model": "embedded",
    "batch_sizes": [1, 2],
    "rounds": 2,
    "systems": [{"system": "on-demand"}, {"system": "specmoe"}],
}


class MadeUpExecutor:
    """Cells that take no time and have made-up figures."""

    def records(self, runner: Runner, units: list[Unit]) -> Iterator[Record]:
        for unit in units:
            cell = unit.planned.cell
            made = record(cell.system, 10 if cell.system == "on-demand" else 20, batch=cell.batch_size, rnd=unit.round)
            config = runner.experiment.model_dump(mode="json")
            named = {"label": unit.planned.label, "run_id": runner.experiment.name, "config": config}
            yield made.model_copy(update={"cell": cell, "cell_id": cell.cell_id} | named)


@pytest.fixture
def made_up(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_command, "make_executor", lambda *_: MadeUpExecutor())


def test_a_suite_runs_what_it_can_resumes_and_ends_with_page_and_table(
    tmp_path: Path, made_up: None, capsys: pytest.CaptureFixture[str]
) -> None:
    lost = SMALL | {"name": "lost", "model": "no-such-model"}
    path = suite_file(
        tmp_path / "s.yaml", SMALL | {"name": "first"}, lost, SMALL | {"name": "last", "batch_sizes": [1]}
    )
    command = ["run", str(path), "--out", str(tmp_path / "out")]
    assert cli.main(command) == 1, "one experiment could not run"
    results = [tmp_path / "out" / name / "results.jsonl" for name in ("first", "last")]
    before = [file.read_bytes() for file in results]
    assert [len(ResultFile(file).read()) for file in results] == [8, 4]
    capsys.readouterr()

    assert cli.main([*command, "--report"]) == 1
    said = capsys.readouterr()
    assert [file.read_bytes() for file in results] == before
    assert "8 finished cells kept, 0 to run" in said.out
    assert "lost cannot be run: unknown model 'no-such-model'" in said.err
    table, page = said.out.strip().splitlines()[-7:-3], said.out.strip().splitlines()[-1]
    assert [line.split()[0] for line in table] == ["experiment", "first", "first", "last"]
    assert "2.00×" in table[1]
    assert page == f"page: {tmp_path / 'out' / 'index.html'}"
    text = (tmp_path / "out" / "index.html").read_text()
    assert "A suite" in text
    assert "Figures not drawn" in text


def test_one_experiment_runs_into_the_folder_itself_and_records_its_command(
    tmp_path: Path, made_up: None, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "e.yaml"
    path.write_text(yaml.safe_dump(SMALL | {"name": "alone"}))
    assert cli.main(["run", str(path), "--out", str(tmp_path / "out"), "--set", "rounds=1"]) == 0
    results = tmp_path / "out" / "results.jsonl"
    assert len(ResultFile(results).read()) == 4
    assert capsys.readouterr().out.strip().splitlines()[-1] == f"results: {results}"


def test_one_experiment_that_cannot_run_is_an_error(
    tmp_path: Path, made_up: None, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "e.yaml"
    path.write_text(yaml.safe_dump(SMALL | {"name": "lost", "model": "no-such-model"}))
    assert cli.main(["run", str(path), "--out", str(tmp_path / "out")]) == 2
    assert "specmoe-bench: unknown model 'no-such-model'" in capsys.readouterr().err
    assert not (tmp_path / "out" / "results.jsonl").exists()
