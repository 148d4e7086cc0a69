"""Suites: several experiments, one page; what cannot run does not stop the rest, and nothing finished runs again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.cli import main as cli
from harness.cli import run as run_command
from harness.plan import suite
from harness.plan.experiment import ConfigError
from harness.plan.schedule import Unit
from harness.run.runner import Runner
from reports.results.record import Record, ResultFile
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


def write(path: Path, *experiments: dict[str, Any], **more: Any) -> Path:
    path.write_text(yaml.safe_dump({"name": "s", "title": "A suite", "experiments": list(experiments)} | more))
    return path


def test_the_full_suite_is_estimated_under_three_hours() -> None:
    full = suite.find("full")
    assert full is not None
    assert full.estimated
    assert suite.estimate_s(full) < 3 * 3600
    assert "on 2 cores" in suite.announce(full)


@pytest.mark.parametrize("name", suite.names())
def test_packaged_suites_name_systems_and_options_that_exist(name: str) -> None:
    found = suite.find(name)
    assert found is not None
    assert found.name == name
    for experiment in found.experiments:
        assert suite.config.plan(experiment, slot_bytes=1000, total_slots=1000)


def test_the_paper_suite_says_what_it_leaves_out() -> None:
    found = suite.find("paper")
    assert found is not None
    assert "encoder-decoder" in suite.announce(found)
    assert "about" not in suite.announce(found).splitlines()[0], "nothing is known of such machines"


def test_an_entry_changes_a_preset_and_keeps_the_rest(tmp_path: Path) -> None:
    found = suite.read(write(tmp_path / "s.yaml", {"preset": "ablation-n", "name": "n-other", "model": "other"}))
    (experiment,) = found.experiments
    assert (experiment.name, experiment.model, experiment.expert_budget) == ("n-other", "other", ["60%"])


def test_an_estimate_counts_the_cells_that_are_planned(tmp_path: Path) -> None:
    swept = SMALL | {"name": "a", "new_tokens": [4, 8], "expert_budget": ["20%", "50%"]}
    swept["systems"] = [
        {"system": "specmoe", "options": {"gamma": [1, 2, 3]}},
        {"system": "on-demand", "expert_budget": "9%"},
    ]
    (experiment,) = suite.read(write(tmp_path / "s.yaml", swept)).experiments
    assert len(suite.cells(experiment)) == len(suite.config.plan(experiment, 1000, 1000)) == 28


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([SMALL | {"name": "a"}, SMALL | {"name": "a"}], "taken twice"),
        ([SMALL | {"name": "../a"}], "no folder's name"),
        ([{"preset": "nothing"}], "unknown preset 'nothing'"),
        ([SMALL | {"name": "a", "rouns": 1}], r"experiments\.0: rouns"),
        (["quick"], "give its fields"),
        ([], "experiments"),
    ],
)
def test_a_suite_that_cannot_be_run_is_refused_with_the_place(tmp_path: Path, entries: list, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        suite.read(write(tmp_path / "s.yaml", *entries))


def test_one_experiment_of_a_suite_can_be_chosen(tmp_path: Path) -> None:
    found = suite.read(write(tmp_path / "s.yaml", SMALL | {"name": "a"}, SMALL | {"name": "b"}))
    assert [e.name for e in found.only(["b"]).experiments] == ["b"]
    with pytest.raises(ConfigError, match="use one of a, b"):
        found.only(["c"])


def test_an_experiments_yaml_is_no_suite(tmp_path: Path) -> None:
    path = tmp_path / "e.yaml"
    path.write_text(yaml.safe_dump(SMALL | {"name": "a"}))
    assert suite.find(str(path)) is None
    assert suite.find("quick") is None


def test_a_suite_runs_what_it_can_resumes_and_ends_with_page_and_table(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run_command, "make_executor", lambda *_: MadeUpExecutor())
    lost = SMALL | {"name": "lost", "model": "no-such-model"}
    path = write(tmp_path / "s.yaml", SMALL | {"name": "first"}, lost, SMALL | {"name": "last", "batch_sizes": [1]})
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
    table, page = said.out.strip().splitlines()[-6:-2], said.out.strip().splitlines()[-1]
    assert [line.split()[0] for line in table] == ["experiment", "first", "first", "last"]
    assert "2.00×" in table[1]
    assert page == f"page: {tmp_path / 'out' / 'index.html'}"
    text = (tmp_path / "out" / "index.html").read_text()
    assert "A suite" in text
    assert "Figures not drawn" in text
