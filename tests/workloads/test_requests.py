"""Request shapes: seeded, within bounds, exact to the token; rows that end at their own length are exact too."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from baselines.contract import Generation, Request
from baselines.hf import greedy
from harness.plan.errors import ConfigError
from harness.plan.experiment import plan, validate
from harness.run import worker
from harness.run.job import Job, Paths
from harness.run.worker import _check_lengths
from reports.results.record import Cell
from specmoe import SpecMoE
from tests.conftest import prompts as random_prompts
from tests.conftest import reference
from workloads import models, prompts
from workloads.lengths import Fixed, Length, LogNormal, RequestShape, Uniform
from workloads.prompt import Message, Prompt
from workloads.requests import make

EXPERIMENT = {"name": "x", "model": "embedded", "systems": [{"system": "on-demand"}], "batch_sizes": [4]}
LENGTHS = st.one_of(
    st.builds(Fixed, st.integers(1, 5000)),
    st.tuples(st.integers(1, 500), st.integers(0, 500)).map(lambda t: Uniform(low=t[0], high=sum(t))),
    st.tuples(st.integers(2, 500), st.floats(0.01, 4), st.integers(0, 2000)).map(
        lambda t: LogNormal(median=t[0], sigma=t[1], max=t[0] + t[2])
    ),
)


@settings(max_examples=30)
@given(LENGTHS, st.integers(0, 2**32), st.integers(1, 256), st.integers(0, 100))
def test_lengths_are_seeded_within_bounds_and_those_of_smaller_batches(
    length: Any, seed: int, rows: int, offset: int
) -> None:
    shape = RequestShape(prompt_tokens=length, output_tokens=length, seed=seed)
    drawn = shape.output_lengths(rows, offset)
    assert all(length.lowest <= n <= length.highest for n in drawn)
    assert drawn == shape.output_lengths(rows, offset)
    assert shape.output_lengths(256 + offset)[offset : offset + rows] == drawn
    assert RequestShape.model_validate_json(shape.model_dump_json()) == shape


def test_another_seed_draws_others_and_prompts_are_drawn_apart_from_outputs() -> None:
    wide = Uniform(low=1, high=10_000)
    first, second = (RequestShape(prompt_tokens=wide, output_tokens=wide, seed=seed) for seed in (0, 1))
    assert first.output_lengths(32) != second.output_lengths(32)
    assert first.output_lengths(32) != first.prompt_lengths(32)


def test_a_log_normal_has_its_median_and_spread() -> None:
    drawn = RequestShape(output_tokens=LogNormal(median=100, sigma=0.5, max=100_000)).output_lengths(4000)
    assert statistics.median(drawn) == pytest.approx(100, rel=0.05)
    quartiles = statistics.quantiles(drawn, n=4)
    assert quartiles[2] / quartiles[0] == pytest.approx(1.963, rel=0.08)  # exp(2 * 0.6745 * 0.5)


def test_a_uniform_length_takes_every_value_alike() -> None:
    drawn = RequestShape(output_tokens=Uniform(low=3, high=7)).output_lengths(5000)
    assert {n: drawn.count(n) for n in set(drawn)} == pytest.approx(dict.fromkeys(range(3, 8), 1000), rel=0.15)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (0, "greater than or equal to 1"),
        (True, "valid integer"),
        ("long", "a length is a number of tokens"),
        ({"distribution": "zipf"}, "a length is a number of tokens"),
        ({"distribution": "uniform", "low": 9, "high": 2}, "high 2 is below low 9"),
        ({"distribution": "uniform", "low": 9}, "Field required"),
        ({"distribution": "lognormal", "median": 50, "sigma": 1, "max": 40}, "not between min 2 and max 40"),
        ({"distribution": "lognormal", "median": 50, "sigma": -1, "max": 80}, "greater than 0"),
    ],
)
def test_a_length_that_makes_no_sense_is_refused(value: object, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TypeAdapter(Length).validate_python(value)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    loaded: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(models.path("embedded"), padding_side="left")
    return loaded


def _lengths(mask: torch.Tensor) -> list[int]:
    return [int(n) for n in mask.sum(1)]


def test_without_a_prompt_length_the_ids_are_the_tokenizers_own(tokenizer: PreTrainedTokenizerFast) -> None:
    chosen = prompts.select(5)
    batch = make(chosen, tokenizer, RequestShape(output_tokens=3), rows=5)
    encoded = tokenizer([p.text for p in chosen], return_tensors="pt", padding=True)
    assert torch.equal(batch.input_ids, encoded["input_ids"])
    assert torch.equal(batch.attention_mask, encoded["attention_mask"])
    assert batch.output_tokens == (3,) * 5


@pytest.mark.parametrize("name", ["embedded", "questions"])
def test_every_prompt_has_exactly_its_drawn_length(name: str, tokenizer: PreTrainedTokenizerFast) -> None:
    shape = RequestShape(prompt_tokens=LogNormal(median=60, sigma=1, max=400), output_tokens=2)
    batch = make(prompts.load(name), tokenizer, shape, rows=40, offset=3)
    assert _lengths(batch.attention_mask) == shape.prompt_lengths(40, 3)


def test_a_long_prompt_is_cut_before_its_end_and_a_short_one_goes_on_with_the_next(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    asked = [Prompt("a", "", (Message("user", "one two three four five"),)), Prompt("b", "import os")]
    whole = make(asked, tokenizer, RequestShape(output_tokens=1), rows=1).input_ids.shape[1]
    short, long = (
        tokenizer.decode(make(asked, tokenizer, RequestShape(prompt_tokens=n, output_tokens=1), 1).input_ids[0])
        for n in (whole - 2, whole + 5)
    )
    assert short.startswith("User: one two")
    assert short.endswith("\n\nAssistant:")
    assert "five" not in short
    assert long.startswith("User: one two three four five\n\nimport os")
    assert long.endswith("\n\nAssistant:")


def test_a_row_beyond_the_models_positions_is_refused_with_a_mend(tokenizer: PreTrainedTokenizerFast) -> None:
    shape = RequestShape(prompt_tokens=100, output_tokens=29)
    assert make(prompts.load(), tokenizer, shape, rows=2, context_tokens=129)
    with pytest.raises(ValueError, match="takes 129 tokens, the model has 128 positions: set prompt_tokens"):
        make(prompts.load(), tokenizer, shape, rows=2, context_tokens=128)


def test_an_experiment_sweeps_prompt_sets_and_lengths() -> None:
    uniform = {"distribution": "uniform", "low": 2, "high": 9}
    changes = {"prompts": ["mathematics", None], "prompt_tokens": [None, 32], "output_tokens": [8, uniform]}
    experiment = validate(EXPERIMENT | changes, "test")
    cells = [p.cell for p in plan(experiment, 1000, 100)]
    assert len({c.cell_id for c in cells}) == len({c.requests for c in cells}) == 8
    assert {(c.new_tokens, c.output_tokens) for c in cells} == {(8, None), (9, Uniform(low=2, high=9))}
    assert validate(experiment.model_dump(mode="json"), "test") == experiment


def test_a_plain_number_of_new_tokens_stays_what_it_was() -> None:
    (planned,) = plan(validate(EXPERIMENT | {"new_tokens": 8}, "test"), 1000, 100)
    assert planned.cell.new_tokens == 8
    assert planned.cell == planned.cell.model_copy(update={"output_tokens": None, "prompt_tokens": None})
    assert validate(EXPERIMENT | {"new_tokens": 8}, "t") == validate(EXPERIMENT | {"output_tokens": 8}, "t")


def test_rows_that_would_decode_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"new_tokens.*ask for 2 or more"):
        validate(EXPERIMENT | {"new_tokens": {"distribution": "uniform", "low": 1, "high": 4}}, "test")


def _job(cell: Cell, prompt_set: str) -> Job:
    """As the runner makes it."""
    unused = Path("unused")
    paths = Paths(model=models.path("embedded"), store=unused, scratch=unused, reference=unused, result=unused)
    return Job(action="measure", cell=cell.model_copy(update={"prompts": prompt_set}), paths=paths)


def test_a_worker_makes_the_batch_its_cell_names() -> None:
    changes = {"batch_sizes": [256], "prompt_tokens": {"distribution": "uniform", "low": 10, "high": 90}}
    output = {"distribution": "lognormal", "median": 20, "sigma": 0.7, "max": 64}
    experiment = validate(EXPERIMENT | changes | {"output_tokens": output, "request_seed": 3}, "test")
    (planned,) = plan(experiment, 1000, 100)
    batch = worker.batch(_job(planned.cell, "questions"))
    assert _lengths(batch.attention_mask) == planned.cell.shape.prompt_lengths(256)
    assert list(batch.output_tokens) == planned.cell.shape.output_lengths(256)
    assert planned.cell.shape.seed == 3


def test_prompts_that_exceed_the_model_fail_before_it_is_loaded() -> None:
    (planned,) = plan(validate(EXPERIMENT | {"new_tokens": 900}, "test"), 1000, 100)
    with pytest.raises(ValueError, match="the model has 1024 positions"):
        worker.batch(_job(planned.cell, "summarisation"))


def test_a_model_is_profiled_with_prompts_as_it_is_fed_them() -> None:
    (planned,) = plan(validate(EXPERIMENT, "test"), 1000, 100)
    texts = worker._calibration_texts(_job(planned.cell, "embedded"))
    assert texts == tuple(p.text for p in prompts.load()[-prompts.CALIBRATION :])


RAGGED = (7, 1, 12, 3, 12)


def _request(ids: torch.Tensor, mask: torch.Tensor, seen: list[str]) -> Request:
    return Request(ids, mask, max(RAGGED), lambda: seen.append("first"), RAGGED)


def _alone(model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor) -> list[list[int]]:
    """What transformers' generate gives each row by itself, at the row's own length."""
    return [
        reference(model, ids[row : row + 1, ~mask[row].eq(0)], mask[row : row + 1, ~mask[row].eq(0)], length)[
            0, int(mask[row].sum()) :
        ].tolist()
        for row, length in enumerate(RAGGED)
    ]


@pytest.mark.parametrize(
    "choices", [{"gamma": 0, "placement": "lru"}, {"gamma": 4}, {"gamma": 4, "controller": "auto", "prefetch": "draft"}]
)
def test_rows_of_our_engine_end_at_their_own_length_with_the_tokens_they_have_alone(
    choices: dict[str, Any], tiny: tuple[Path, PreTrainedModel]
) -> None:
    folder, model = tiny
    ids, mask = random_prompts(len(RAGGED), seed=5)
    with SpecMoE.from_pretrained(folder, expert_budget="60%", draft_experts=2, **choices) as engine:
        output = engine.generate(ids, mask, max_new_tokens=RAGGED)
    assert output.stats is not None
    assert output.sequences is not None
    assert output.stats.new_tokens == sum(RAGGED)
    assert max(cycle.rows for cycle in output.stats.cycles) == 4, "the row of one token leaves with the prefill"
    new = output.sequences[:, ids.shape[1] :]
    assert [row[:n].tolist() for row, n in zip(new, RAGGED, strict=True)] == _alone(model, ids, mask)


def test_rows_of_transformers_end_at_their_own_length_too(tiny: tuple[Path, PreTrainedModel]) -> None:
    _, model = tiny
    ids, mask = random_prompts(len(RAGGED), seed=5)
    seen: list[str] = []
    generation = greedy(model, _request(ids, mask, seen))
    assert generation.rows() == _alone(model, ids, mask)
    assert seen == ["first"]


def test_as_many_lengths_as_rows_are_asked_for(tiny: tuple[Path, PreTrainedModel]) -> None:
    ids, mask = random_prompts(3)
    with SpecMoE.from_pretrained(tiny[0], gamma=0) as engine:
        with pytest.raises(ValueError, match=r"\[4, 5\], for 3 rows: give one number, or one per row"):
            engine.generate(ids, mask, max_new_tokens=[4, 5])
        with pytest.raises(ValueError, match="leaves no room"):
            engine.generate(ids, mask, max_new_tokens=[4, 0, 5])
    for lengths in ((4, 5), (4, 0, 5), (4, 5, 3)):
        with pytest.raises(ValueError, match="do not fit 3 rows of at most 6 tokens"):
            Request(ids, mask, 6, lambda: None, lengths)


def test_an_answer_with_a_row_too_long_or_missing_is_an_error_of_the_system() -> None:
    ids, mask = random_prompts(2)
    request = Request(ids, mask, 4, lambda: None, (4, 3))
    _check_lengths(Generation([torch.zeros(4, dtype=torch.long), torch.zeros(3, dtype=torch.long)]), request)
    with pytest.raises(RuntimeError, match="row 1 came back with 4 tokens, 3 were requested"):
        _check_lengths(Generation(torch.zeros(2, 4, dtype=torch.long)), request)
    with pytest.raises(RuntimeError, match="1 rows came back, 2 were requested"):
        _check_lengths(Generation(torch.zeros(1, 4, dtype=torch.long)), request)
