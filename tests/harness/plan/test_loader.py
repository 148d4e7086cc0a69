"""One loader takes presets, suites and YAML files of either; what it refuses is one line with the place and the fix."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from harness.plan.errors import ConfigError
from harness.plan.experiment import Experiment, plan
from harness.plan.loader import load, presets, suites
from tests.harness.experiments import MINIMAL, SIZES, suite_file


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "e.yaml"
    path.write_text(json.dumps(MINIMAL))
    return path


@pytest.mark.parametrize("name", presets())
def test_presets_are_valid(name: str) -> None:
    assert len(plan(presets()[name], SIZES)) >= 2


@pytest.mark.parametrize("name", suites())
def test_packaged_suites_name_systems_and_options_that_exist(name: str) -> None:
    suite = load(name)
    assert suite.name == name
    for experiment in suite.experiments:
        assert plan(experiment, SIZES, memory_read_gb_s=20.0)


@pytest.mark.parametrize("text", ["", "- 1", "smoke"])
def test_a_file_without_fields_is_refused_in_plain_words(file: Path, text: str) -> None:
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"e\.yaml is no experiment or suite: write its fields as key: value"):
        load(str(file), ["rounds=1"])


def test_a_key_given_twice_is_refused_and_an_anchor_may_be_overruled(tmp_path: Path) -> None:
    path = tmp_path / "e.yaml"
    text = yaml.safe_dump(MINIMAL)
    path.write_text(f"{text}rounds: 2\nrounds: 4\n")
    with pytest.raises(ConfigError, match="rounds is given twice"):
        load(str(path))
    first, second = "- &first {system: on-demand, label: a}", "- {<<: *first, label: b}"
    path.write_text(text.replace("- system: on-demand", f"{first}\n{second}"))
    assert [entry.label for entry in load(str(path)).experiments[0].systems] == ["a", "b"]


def test_an_experiment_is_a_suite_of_one(file: Path) -> None:
    suite = load(str(file), ["rounds=7"])
    assert suite.single
    assert suite.experiments == [Experiment.model_validate(MINIMAL | {"rounds": 7})]
    assert suite.folder(suite.experiments[0], Path("out")) == Path("out")
    assert suite.command(suite.experiments[0]) == f"specmoe-bench run {file} --set rounds=7 --report"
    assert load("quick").single
    with pytest.raises(ConfigError, match=r"--only x selects from a suite, but .*e\.yaml' is a single experiment"):
        suite.only(["x"])


def test_experiments_of_a_suite_have_folders_and_commands_of_their_own(tmp_path: Path) -> None:
    path = suite_file(tmp_path / "s.yaml", MINIMAL, MINIMAL | {"name": "y"})
    suite = load(str(path), ["defaults.rounds=1"])
    assert not suite.single
    assert [e.rounds for e in suite.experiments] == [1, 1]
    assert [suite.folder(e, Path("out")) for e in suite.experiments] == [Path("out/x"), Path("out/y")]
    assert suite.command(suite.experiments[1]) == f"specmoe-bench run {path} --only y --set defaults.rounds=1 --report"


def test_an_entry_changes_a_preset_and_keeps_the_rest(tmp_path: Path) -> None:
    path = suite_file(tmp_path / "s.yaml", {"preset": "ablation-n", "name": "n-other", "model": "other"})
    (experiment,) = load(str(path)).experiments
    assert (experiment.name, experiment.model, experiment.expert_budget) == ("n-other", "other", ["60%"])


def test_a_file_that_is_not_an_experiment_is_named(file: Path, tmp_path: Path) -> None:
    file.write_text("a: [1")
    with pytest.raises(ConfigError, match=r"e\.yaml is not YAML"):
        load(str(file))
    file.write_text(yaml.safe_dump(MINIMAL | {"rouns": 1}))
    with pytest.raises(ConfigError, match=r"e\.yaml: rouns: no such field, did you mean 'rounds'\?"):
        load(str(file))
    with pytest.raises(ConfigError, match="cannot read"):
        load(str(tmp_path / "missing.yaml"))
    with pytest.raises(ConfigError, match="cannot read"):
        load(str(tmp_path))


def test_an_unknown_name_is_answered_with_a_near_one_or_with_all() -> None:
    with pytest.raises(ConfigError, match=r"use one of .*quick, .*smoke, .*full"):
        load("slowest")
    with pytest.raises(ConfigError, match="unknown preset or suite 'quik', did you mean 'quick'"):
        load("quik")
    with pytest.raises(ConfigError, match="unknown preset or suite ''"):
        load("")


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("rouns=5", "rouns: no such field, did you mean 'rounds'?"),
        ("rounds=many", "rounds: Input should be a valid integer"),
        ("name.first=x", "name: Input should be a valid string"),
        ("systems.0.labl=x", "systems.0.labl: no such field, did you mean 'label'?"),
    ],
)
def test_an_assignment_that_sets_a_wrong_field_is_named_instead_of_the_file(
    assignment: str, message: str, file: Path
) -> None:
    with pytest.raises(ConfigError) as error:
        load(str(file), [assignment])
    assert str(error.value).startswith(f"--set {assignment!r}: {message}")


def test_so_is_one_within_an_experiment_of_a_suite(tmp_path: Path) -> None:
    path = suite_file(tmp_path / "s.yaml", MINIMAL, MINIMAL | {"name": "y"})
    for assignment in ("experiments.1.rouns=5", "defaults.rouns=5"):
        with pytest.raises(ConfigError, match=rf"^--set '{assignment}': rouns: .*'rounds'"):
            load(str(path), [assignment])


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([MINIMAL, MINIMAL], "'x' is used twice"),
        ([MINIMAL | {"name": "../a"}], "cannot be a folder's name"),
        ([{"preset": "nothing"}], "unknown preset 'nothing'"),
        ([{"preset": "quik"}], "unknown preset 'quik', did you mean 'quick'"),
        ([{"preset": ["quick"]}], "unknown preset"),
        ([MINIMAL | {"rouns": 1}], r"s\.yaml: experiments\.0: rouns: .*'rounds'"),
        (["quick"], "give its fields"),
        ([], "experiments"),
    ],
)
def test_a_suite_that_cannot_be_run_is_refused_with_the_place(tmp_path: Path, entries: list, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(str(suite_file(tmp_path / "s.yaml", *entries)))
    with pytest.raises(ConfigError, match="titel: no such field, did you mean 'title'"):
        load(str(suite_file(tmp_path / "s.yaml", MINIMAL, titel="x")))
