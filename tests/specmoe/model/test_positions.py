"""Rotary positions that depend on the longest row give transformers' tokens, or a refusal where a batch would cross."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from specmoe import SpecMoE, UnsupportedModelError
from tests import families
from tests.conftest import prompts, reference

CHANGE = 32  # the last position before the frequencies change, in tests/families/shapes.py
FAMILIES = ["phimoe+longrope", "qwen3_moe+longrope", "qwen3_moe+dynamic-ntk"]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("gamma", [0, 4])
def test_a_batch_that_may_cross_the_change_is_refused(family: str, gamma: int, tmp_path: Path) -> None:
    families.build(family, tmp_path / "model")
    ids, mask = prompts(3)
    most = CHANGE - ids.shape[1] - gamma - 1
    with SpecMoE.from_pretrained(tmp_path / "model", dtype=torch.float32, gamma=gamma, draft_experts=2) as engine:
        engine.generate(ids, mask, max_new_tokens=most)
        with pytest.raises(UnsupportedModelError, match=r"after 32 tokens.*33 .*shorten .* by 1") as caught:
            engine.generate(ids, mask, max_new_tokens=most + 1)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_up_to_the_change_are_those_of_transformers(family: str, tmp_path: Path) -> None:
    model = families.build(family, tmp_path / "model")
    ids, mask = prompts(3)
    new_tokens = CHANGE - ids.shape[1] - 5
    with SpecMoE.from_pretrained(tmp_path / "model", dtype=torch.float32, gamma=4, draft_experts=2) as engine:
        output = engine.generate(ids, mask, max_new_tokens=new_tokens)
    assert output.sequences.tolist() == reference(model, ids, mask, new_tokens).tolist()


@pytest.mark.parametrize("family", ["phimoe+longrope", "qwen3_moe+longrope"])
def test_prompts_beyond_the_change_are_exact(family: str, tmp_path: Path) -> None:
    model = families.build(family, tmp_path / "model")
    ids, mask = prompts(3, shortest=CHANGE + 1, longest=CHANGE + 8)
    with SpecMoE.from_pretrained(tmp_path / "model", dtype=torch.float32, gamma=4, draft_experts=2) as engine:
        output = engine.generate(ids, mask, max_new_tokens=12)
    assert output.sequences.tolist() == reference(model, ids, mask, 12).tolist()
