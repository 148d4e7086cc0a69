"""Rows end at their own length with the tokens that they have alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from baselines import registry
from baselines.contract import Request
from baselines.hf import decode
from specmoe import SpecMoE
from tests.baselines.builders import setting_of
from tests.conftest import prompts as random_prompts
from tests.conftest import reference

RAGGED = (7, 1, 12, 3, 12)
ON_CPU = (
    "accelerate-cpu",
    "accelerate-disk",
    "caching",
    "hf-resident",
    "mmap",
    "naive",
    "on-demand",
    "overlap",
    "specmoe",
)


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
    with SpecMoE.from_pretrained(
        folder, store=folder / "store", expert_budget="60%", draft_experts=2, **choices
    ) as engine:
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
    generation = decode(model, _request(ids, mask, seen))
    assert generation.rows() == _alone(model, ids, mask)
    assert seen == ["first"]


@pytest.mark.parametrize("name", ON_CPU)
def test_every_system_ends_rows_at_their_own_length(
    name: str, tiny: tuple[Path, PreTrainedModel], tmp_path: Path
) -> None:
    folder, model = tiny
    ids, mask = random_prompts(len(RAGGED), seed=5)
    seen: list[str] = []
    reported = [0] * len(RAGGED)

    def report(row: int, count: int) -> None:
        reported[row] += count

    system, setting = registry.create(name, {}), setting_of(folder, tmp_path)
    try:
        system.build(setting)
        system.prepare(setting)
        request = replace(_request(ids, mask, seen), on_tokens=report)
        assert system.generate(request).rows() == _alone(model, ids, mask)
    finally:
        system.close()
    assert seen == ["first"]
    assert tuple(reported) == RAGGED, "every token is reported once"


def test_as_many_lengths_as_rows_are_asked_for(tiny: tuple[Path, PreTrainedModel]) -> None:
    ids, mask = random_prompts(3)
    with SpecMoE.from_pretrained(tiny[0], store=tiny[0] / "store", gamma=0) as engine:
        with pytest.raises(ValueError, match=r"\[4, 5\], for 3 rows: give one number, or one per row"):
            engine.generate(ids, mask, max_new_tokens=[4, 5])
        with pytest.raises(ValueError, match="leaves no room"):
            engine.generate(ids, mask, max_new_tokens=[4, 0, 5])
    for lengths in ((4, 5), (4, 0, 5), (4, 5, 3)):
        with pytest.raises(ValueError, match="do not fit 3 rows of at most 6 tokens"):
            Request(ids, mask, 6, lambda: None, lengths)
