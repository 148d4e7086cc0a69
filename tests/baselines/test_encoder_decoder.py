"""Adapters measure an encoder-decoder: the same tokens as the reference, with its start and forced first token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from baselines import registry
from baselines.contract import NotSupported, Request
from harness.run import reference
from specmoe.generation import plain_config
from specmoe.model.wrappers import load_whole
from tests import families
from tests.baselines.builders import setting_of
from tests.conftest import prompts
from workloads.requests import Batch

NEW = 6
OUTPUTS = (3, 6, 4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny NLLB-MoE that asks for the experts of its router and forces the first token."""
    path = tmp_path_factory.mktemp("encoder-decoder") / "model"
    families.build("nllb-moe", path)
    for name, settings in (
        ("config.json", {"experts_follow_router": True}),
        ("generation_config.json", {"forced_bos_token_id": 17, "max_length": 2, "eos_token_id": 75}),
    ):
        file = path / name
        file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    return path


@pytest.fixture(scope="module")
def expected(folder: Path) -> list[list[int]]:
    """The reference's new tokens."""
    model: PreTrainedModel = load_whole(folder, torch.float32)
    model.generation_config = plain_config(model)
    ids, mask = prompts(3)
    sequences: Any = model.generate(
        ids, attention_mask=mask, max_new_tokens=NEW, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    return [row[1 : 1 + length].tolist() for row, length in zip(sequences, OUTPUTS, strict=True)]


@pytest.mark.parametrize("name", ["specmoe", "on-demand", "caching", "hf-resident"])
def test_new_tokens_are_those_of_the_reference(
    name: str, folder: Path, expected: list[list[int]], tmp_path: Path
) -> None:
    options = {"gamma": 2, "draft_experts": 2} if name == "specmoe" else {}
    system, setting = registry.create(name, options), setting_of(folder, tmp_path)
    firsts: list[None] = []
    try:
        system.build(setting)
        system.prepare(setting)
        found = system.generate(Request(*prompts(3), NEW, lambda: firsts.append(None), OUTPUTS)).rows()
    finally:
        system.close()
    assert found == expected
    assert all(row[0] == 17 for row in found)
    assert len(firsts) == 1


@pytest.mark.parametrize("name", ["naive", "mmap", "accelerate-disk", "accelerate-cpu"])
def test_systems_over_transformers_experts_functions_say_why_not(name: str, folder: Path, tmp_path: Path) -> None:
    system, setting = registry.create(name, {}), setting_of(folder, tmp_path)

    def load() -> None:
        system.build(setting)
        system.prepare(setting)

    with pytest.raises(NotSupported, match="outside transformers' experts interface, which this system uses"):
        load()


def test_the_reference_has_logits_beside_the_tokens_of_its_decoder(
    folder: Path, expected: list[list[int]], tmp_path: Path
) -> None:
    model = load_whole(folder, torch.float32)
    model.generation_config = plain_config(model)
    reference.write(model, Batch(*prompts(3), OUTPUTS), tmp_path / "tokens.json", 3)
    logits = reference.Logits.read(tmp_path / "tokens.json")
    assert json.loads((tmp_path / "tokens.json").read_text()) == expected
    assert logits is not None
    assert [[step[0] for step in row] for row in logits.tokens] == expected
    assert all(row[0][1] < -1e38 for row in logits.logits), "the first token is forced"
    assert 0 < logits.noise_floor < 1e-4, "of one pass over the decoder's tokens"
