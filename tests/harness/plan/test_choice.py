"""Systems, model and batch sizes on the command line cut an experiment down, or make one without a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.plan.choice import Choice
from harness.plan.errors import ConfigError
from harness.plan.loader import compose, load
from tests.harness.experiments import MINIMAL, suite_file


def chosen(systems: str = "", batch: str = "", model: str | None = None, **options: Any) -> Choice:
    return Choice.parse([systems], model, [batch], options)


def test_a_preset_is_cut_to_the_systems_and_batches_asked_for() -> None:
    suite = chosen("specmoe,caching lfu", "1").of(load("quick"))
    (experiment,) = suite.experiments
    assert [entry.label for entry in experiment.systems] == ["caching LFU", "SpecMoE", "SpecMoE controller"]
    assert experiment.batch_sizes == [1]
    assert suite.command(experiment) == "specmoe-bench run quick --system 'specmoe,caching lfu' --batch 1 --report"
    assert chosen().of(load("quick")) == load("quick"), "nothing asked for changes nothing"


def test_experiments_of_a_suite_without_the_system_are_left_out(tmp_path: Path) -> None:
    other = MINIMAL | {"name": "b", "systems": [{"system": "caching"}]}
    suite = load(str(suite_file(tmp_path / "s.yaml", MINIMAL | {"name": "a"}, other)))
    assert [e.name for e in chosen("caching", model="embedded-x8").of(suite).experiments] == ["b"]
    with pytest.raises(ConfigError, match="has no system 'cachin', did you mean 'caching'"):
        chosen("cachin").of(suite)


def test_an_experiment_needs_no_file() -> None:
    suite = compose(chosen("specmoe", "1,8", "embedded-x8", gamma=2), ["rounds=2"])
    (experiment,) = suite.experiments
    assert (experiment.name, experiment.model, experiment.rounds) == ("specmoe-embedded-x8", "embedded-x8", 2)
    assert experiment.batch_sizes == [1, 8]
    assert experiment.systems[0].options == {"gamma": 2}
    command = (
        "specmoe-bench run --system specmoe --model embedded-x8 --batch 1,8 --option gamma=2 --set rounds=2 --report"
    )
    assert suite.command(experiment) == command


@pytest.mark.parametrize("size", ["0", "-1", "1.5", "x"])
def test_a_batch_size_that_is_not_a_number_from_1_is_refused(size: str) -> None:
    with pytest.raises(ConfigError, match="such as --batch 1,8"):
        chosen(batch=size)


def test_a_field_of_experiments_set_for_a_suite_changes_all_of_them(tmp_path: Path) -> None:
    path = suite_file(tmp_path / "s.yaml", MINIMAL | {"name": "a", "rounds": 5}, {"preset": "smoke"})
    suite = load(str(path), ["rounds=1", "experiments.0.title=First"])
    assert [e.rounds for e in suite.experiments] == [1, 1]
    assert suite.experiments[0].title == "First"
    with pytest.raises(ConfigError, match="--set 'rounds=0': rounds: "):
        load(str(path), ["rounds=0"])
    with pytest.raises(ConfigError, match="--set 'rouns=1': rouns: no such field"):
        load(str(path), ["rouns=1"])


def test_a_system_shortened_to_one_token_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "e.yaml"
    path.write_text(yaml.safe_dump(MINIMAL | {"systems": [{"system": "naive", "first_tokens": 1}]}))
    with pytest.raises(ConfigError, match=r"systems\.0\.first_tokens"):
        load(str(path))
