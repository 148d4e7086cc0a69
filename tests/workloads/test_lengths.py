"""Lengths are drawn by seed, stay within their bounds, and are the same for smaller batches."""

from __future__ import annotations

import statistics
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from tests.conftest import examples
from workloads.lengths import Fixed, Length, LogNormal, RequestShape, Uniform

LENGTHS = st.one_of(
    st.builds(Fixed, st.integers(1, 5000)),
    st.tuples(st.integers(1, 500), st.integers(0, 500)).map(lambda t: Uniform(low=t[0], high=sum(t))),
    st.tuples(st.integers(2, 500), st.floats(0.01, 4), st.integers(0, 2000)).map(
        lambda t: LogNormal(median=t[0], sigma=t[1], max=t[0] + t[2])
    ),
)


@settings(max_examples=examples(30))
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
