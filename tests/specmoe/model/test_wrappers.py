"""Checkpoints of vision-language wrappers are loaded as their text model: only keys of other parts are left out."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    InternVLConfig,
    InternVLForConditionalGeneration,
    Llama4ForConditionalGeneration,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    PreTrainedModel,
)

from specmoe import SpecMoE, UnsupportedModelError
from specmoe.model.checkpoint import Checkpoint, build_shell
from tests import families
from tests.conftest import prompts, reference
from tests.specmoe.model.checkpoints import edit

VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}


def _save(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.3)
    model.float().eval().save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def llama4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole Llama-4 checkpoint: vision tower, projector and language model."""
    folder = tmp_path_factory.mktemp("llama4") / "model"
    _save(Llama4ForConditionalGeneration(families.tiny_config("llama4")), folder)
    return folder


def _equal(folder: Path, model: PreTrainedModel) -> None:
    ids, mask = prompts(3)
    expected = reference(model, ids, mask, 10)
    assert len(expected[:, -10:].unique()) > 7
    for gamma in (0, 4):
        with SpecMoE.from_pretrained(
            folder, store=folder.with_name("store"), dtype=torch.float32, gamma=gamma, draft_experts=2
        ) as engine:
            output = engine.generate(ids, mask, max_new_tokens=10, eos_token_id=None, pad_token_id=0)
        assert torch.equal(output.sequences, expected)


@pytest.mark.slow
def test_a_llama4_checkpoint_with_its_vision_tower_gives_the_tokens_of_its_text_model(
    llama4: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="specmoe"):
        _equal(llama4, AutoModelForCausalLM.from_pretrained(llama4, dtype=torch.float32).eval())
    assert "tensors of vision or audio parts are not loaded, it takes text only" in caplog.text


@pytest.mark.slow
def test_mistral3_with_a_mistral4_text_model_gives_the_wrappers_own_tokens(tmp_path: Path) -> None:
    vision = VISION | {"model_type": "pixtral", "image_size": 28, "patch_size": 14, "head_dim": 8}
    config = Mistral3Config(text_config=families.tiny_config("mistral4").to_dict(), vision_config=vision)
    _equal(tmp_path / "model", _save(Mistral3ForConditionalGeneration(config), tmp_path / "model"))


@pytest.mark.slow
def test_internvl_with_a_qwen3_moe_text_model_gives_the_wrappers_own_tokens(tmp_path: Path) -> None:
    vision = VISION | {"model_type": "internvl_vision", "image_size": [28, 28], "patch_size": [14, 14]}
    text = families.tiny_config("qwen3_moe").to_dict()
    config = InternVLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False)
    _equal(tmp_path / "model", _save(InternVLForConditionalGeneration(config), tmp_path / "model"))


def test_exactly_the_keys_of_other_parts_are_ignored(llama4: Path) -> None:
    ignored = Checkpoint(llama4, build_shell(llama4)).ignored
    assert {key.partition(".")[0] for key in ignored} == {"vision_model", "multi_modal_projector"}
    assert set(ignored.values()) == {"a vision or audio part, which text does not use"}


def test_a_key_of_no_part_is_still_refused(llama4: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(llama4, tmp_path / "model"))
    edit(folder, lambda tensors: tensors | {"vision_model.unknown.weight": torch.zeros(2, 2)})
    with pytest.raises(UnsupportedModelError, match=r"no place for vision_model\.unknown\.weight"):
        Checkpoint(folder, build_shell(folder))
