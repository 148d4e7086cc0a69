"""Experiments sweep prompt sets and lengths, and refuse lengths that decode nothing."""

from __future__ import annotations

import pytest

from harness.plan.errors import ConfigError
from harness.plan.experiment import plan, validate
from tests.harness.experiments import SIZES
from workloads.lengths import Uniform

EXPERIMENT = {"name": "x", "model": "embedded", "systems": [{"system": "on-demand"}], "batch_sizes": [4]}


def test_an_experiment_sweeps_prompt_sets_and_lengths() -> None:
    uniform = {"distribution": "uniform", "low": 2, "high": 9}
    changes = {"prompts": ["mathematics", None], "prompt_tokens": [None, 32], "output_tokens": [8, uniform]}
    experiment = validate(EXPERIMENT | changes, "test")
    cells = [p.cell for p in plan(experiment, SIZES)]
    assert len({c.cell_id for c in cells}) == len({c.asked for c in cells}) == 8
    assert {(c.new_tokens, c.output_tokens) for c in cells} == {(8, None), (9, Uniform(low=2, high=9))}
    assert validate(experiment.model_dump(mode="json"), "test") == experiment


def test_a_number_of_new_tokens_is_the_same_cell_as_before_distributions() -> None:
    (planned,) = plan(validate(EXPERIMENT | {"new_tokens": 8}, "test"), SIZES)
    assert planned.cell.new_tokens == 8
    assert planned.cell == planned.cell.model_copy(update={"output_tokens": None, "prompt_tokens": None})
    assert validate(EXPERIMENT | {"new_tokens": 8}, "t") == validate(EXPERIMENT | {"output_tokens": 8}, "t")


def test_lengths_without_a_decoded_token_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"new_tokens.*ask for 2 or more"):
        validate(EXPERIMENT | {"new_tokens": {"distribution": "uniform", "low": 1, "high": 4}}, "test")
