"""Requests, generations, cards and options that break the adapter contract are refused with one clear error."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from baselines import contract, registry
from baselines.contract import NotSupported, Request


@pytest.mark.parametrize(
    ("ids", "mask", "new_tokens", "message"),
    [
        ([[1, 2]], [[1]], 1, "must both be"),
        ([[1, 2]], [[1, 0]], 1, "padding on the left"),
        ([[1, 2], [3, 4]], [[1, 1], [0, 0]], 1, "needs a token"),
        ([[1, 2]], [[1, 1]], 0, "ask for 1 or more"),
    ],
)
def test_a_bad_request_cannot_be_made(ids: list, mask: list, new_tokens: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Request(torch.tensor(ids), torch.tensor(mask), new_tokens, lambda: None)


LONG, FLOAT = torch.zeros(2, 3, dtype=torch.long), torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("new_ids", "held"),
    [
        ([[1, 2], [3, 4]], "a value of type list"),
        ([1, 2], "a value of type int"),
        (None, "a value of type NoneType"),
        ("ab", "a value of type str"),
        (LONG[0], r"a tensor \[3\] of int64"),
        (LONG[None], r"a tensor \[1, 2, 3\] of int64"),
        (FLOAT, r"a tensor \[3\] of float32"),
        ([LONG[0], FLOAT[0]], r"a tensor \[3\] of float32"),
        ([LONG[0], LONG[:1]], r"a tensor \[1, 3\] of int64"),
    ],
)
def test_a_generation_of_the_wrong_type_is_one_clear_error(new_ids: Any, held: str) -> None:
    with pytest.raises(TypeError, match=rf"^Generation.new_ids holds {held}: give a long tensor \[B, new_tokens\], or"):
        contract.Generation(new_ids).rows()


def test_a_generation_is_a_matrix_or_a_row_for_each_prompt() -> None:
    ids = torch.tensor([[1, 2], [3, 4]])
    assert contract.Generation(ids).rows() == [[1, 2], [3, 4]]
    assert contract.Generation([ids[0], ids[1, :1]]).rows() == [[1, 2], [3]]


def test_generate_before_prepare_is_an_error_that_says_so() -> None:
    request = Request(torch.ones(1, 2, dtype=torch.long), torch.ones(1, 2, dtype=torch.long), 1, lambda: None)
    for name in ("on-demand", "naive", "hf-resident", "mmap", "llama-cpp"):
        with pytest.raises(RuntimeError, match="call prepare first"):
            registry.create(name, {}).generate(request)


def test_a_card_refuses_what_it_does_not_name() -> None:
    card = contract.CapabilityCard("x", "x", "x", "experts", True, dtypes=("bfloat16",), max_batch=4)
    assert card.refusal("bfloat16", 4) is None
    assert "use device: cpu" in card.refusal("bfloat16", 4, "cuda:1")
    assert "use slow_tier: disk" in card.refusal("bfloat16", 4, "cpu", "paced:1GB/s")
    assert "use bfloat16" in card.refusal("float32", 1)
    assert "at most 4" in card.refusal("bfloat16", 5)


def test_a_missing_package_is_not_supported_and_names_the_command() -> None:
    with pytest.raises(NotSupported, match=r"pip install 'specmoe-bench\[llamacpp\]'"):
        contract.require("no_such_package", "llamacpp")


def test_two_systems_of_one_name_are_refused() -> None:
    class Second:
        card = registry.systems()["naive"].card

    with pytest.raises(ValueError, match="two systems are called 'naive': rename one card"):
        registry.register(Second)


def test_an_unknown_system_or_option_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown system 'fast': use one of accelerate-cpu, .*specmoe"):
        registry.create("fast", {})
    with pytest.raises(ValueError, match=r"system 'caching', option policy: .*\(options: kernels, placement\)"):
        registry.create("caching", {"policy": "lru"})
