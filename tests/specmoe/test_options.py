"""Every option is described, validated, and refused with the value given and what is allowed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel

from specmoe import SpecMoE
from specmoe.errors import OptionError
from specmoe.options import SpecOptions


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("gamma", -1, "greater than or equal to 0"),
        ("gamma", 65, "less than or equal to 64"),
        ("gamma", "many", "integer"),
        ("draft_experts", 0, "greater than or equal to 1"),
        ("placement", "magic", "'on-demand'"),
        ("drafter", "magic", "'ngram'"),
        ("draft_pool", "magic", "'resident'"),
        ("draft_bits", 5, "2, 3, 4 or 8"),
        ("selection", "magic", "'hot-temporal'"),
        ("count_window", "magic", "'last'"),
        ("hot_decay", 1.5, "less than or equal to 1"),
        ("hot_decay", -0.1, "greater than or equal to 0"),
        ("counted", "magic", "'accepted'"),
        ("refresh_interval", 0, "greater than or equal to 1"),
        ("refresh_interval", 65, "less than or equal to 64"),
        ("max_replacements", 0, "greater than or equal to 1"),
        ("ties", "magic", "'incumbent'"),
        ("initial", "magic", "'prefill-tail'"),
        ("substitution", "magic", "'drop'"),
        ("collision", "magic", "'once'"),
        ("merged_experts", -1, "greater than or equal to 0"),
        ("prefetch", "magic", "'draft'"),
        ("prefetch_share", 0.0, "greater than 0"),
        ("prefetch_share", 1.1, "less than or equal to 1"),
        ("ngram_max", 0, "greater than or equal to 1"),
        ("ngram_max", 17, "less than or equal to 16"),
        ("ngram_min", 0, "greater than or equal to 1"),
        ("controller", "magic", "'auto'"),
        ("kernels", "magic", "'torch'"),
        ("seed", -1, "greater than or equal to 0"),
        ("gama", 3, "no such option, use one of gamma, "),
    ],
)
def test_a_wrong_option_is_named_with_its_value_and_what_is_allowed(name: str, value: Any, allowed: str) -> None:
    with pytest.raises(OptionError) as caught:
        SpecOptions.of(**{name: value})
    message = str(caught.value)
    assert f"option {name}:" in message
    assert allowed in message
    assert f"(given {value!r})" in message


def test_the_ranges_of_all_options_are_tested() -> None:
    wrong = next(
        mark
        for mark in test_a_wrong_option_is_named_with_its_value_and_what_is_allowed.pytestmark  # type: ignore[attr-defined]
    )
    assert {name for name, _, _ in wrong.args[1]} - {"gama"} == set(SpecOptions.model_fields)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"substitution": "merged"}, "merged_experts go together: give both or neither"),
        ({"merged_experts": 4}, "merged_experts go together: give both or neither"),
        ({"draft_pool": "low-bit", "substitution": "merged", "merged_experts": 2}, "choose one of them"),
        ({"ngram_min": 5, "ngram_max": 3}, "ngram_min 5 is above ngram_max 3"),
        ({"controller": "auto", "gamma": 0}, "needs gamma >= 1"),
    ],
)
def test_contradicting_options_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        SpecOptions.of(**values)


def test_options_are_described_one_by_one() -> None:
    assert all(field.description for field in SpecOptions.model_fields.values())


def test_named_options_override_those_of_an_object(tiny: tuple[Path, PreTrainedModel]) -> None:
    options = SpecOptions.of(gamma=7, draft_experts=2)
    with SpecMoE.from_pretrained(tiny[0], store=tiny[0] / "store", options=options, gamma=2) as engine:
        assert (engine.options.gamma, engine.options.draft_experts) == (2, 2)
