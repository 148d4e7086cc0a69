"""Requests have exactly the drawn lengths, keep the end of each prompt, and fit the model's positions."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from workloads import prompts
from workloads.lengths import LogNormal, RequestShape
from workloads.prompt import Message, Prompt
from workloads.requests import make


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


def test_a_long_prompt_is_cut_before_its_end_and_a_short_one_continues_with_the_next(
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


def test_a_row_beyond_the_models_positions_is_refused_with_a_fix(tokenizer: PreTrainedTokenizerFast) -> None:
    shape = RequestShape(prompt_tokens=100, output_tokens=29)
    assert make(prompts.load(), tokenizer, shape, rows=2, context_tokens=129)
    with pytest.raises(ValueError, match="takes 129 tokens, the model has 128 positions: set prompt_tokens"):
        make(prompts.load(), tokenizer, shape, rows=2, context_tokens=128)
