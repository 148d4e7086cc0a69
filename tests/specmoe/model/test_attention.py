"""The configured attention decides the masks: sdpa and eager are exact, anything else is refused before it runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from specmoe import SpecMoE
from specmoe.errors import UnsupportedModelError
from specmoe.model.attention import check_attention, takes_boolean_masks
from tests import families
from tests.conftest import FAMILIES, build, prompts, reference


def _edit(folder: Path, **values: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize("family", list(FAMILIES))
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_an_implementation_named_in_the_config_is_exact(implementation: str, family: str, tmp_path: Path) -> None:
    build(family, tmp_path)
    _edit(tmp_path, attn_implementation=implementation)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert model.config._attn_implementation == implementation
    ids, mask = prompts(3)
    with SpecMoE.from_pretrained(tmp_path, store=tmp_path / "store", gamma=3, draft_experts=2) as engine:
        assert takes_boolean_masks(engine.model.config) == (implementation == "sdpa")
        output = engine.generate(ids, mask, max_new_tokens=10)
    assert output.sequences.tolist() == reference(model, ids, mask, 10).tolist()


@pytest.mark.parametrize("implementation", ["flash_attention_2", "flex_attention", "kernels-community/flash-attn"])
def test_other_implementations_are_refused_before_anything_is_written(implementation: str, tmp_path: Path) -> None:
    build("qwen3", tmp_path)
    _edit(tmp_path, attn_implementation=implementation)
    with pytest.raises(UnsupportedModelError, match=f"'{implementation}' .* set attn_implementation to \"sdpa\""):
        SpecMoE.from_pretrained(tmp_path, store=tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_an_implementation_set_on_the_loaded_model_is_refused(tiny: tuple[Path, PreTrainedModel]) -> None:
    ids, mask = prompts(2)
    with SpecMoE.from_pretrained(tiny[0], store=tiny[0] / "store", gamma=0) as engine:
        engine.model.config._attn_implementation = "flex_attention"
        with pytest.raises(UnsupportedModelError, match="flex_attention"):
            engine.generate(ids, mask, max_new_tokens=2)
        assert engine.link.snapshot().moved_bytes == 0


def test_an_implementation_of_a_part_of_the_config_is_refused() -> None:
    config = families.tiny_config("gemma4")
    check_attention(config)
    config.text_config._attn_implementation = "flex_attention"
    with pytest.raises(UnsupportedModelError, match="flex_attention"):
        check_attention(config)


def test_bidirectional_attention_is_refused() -> None:
    config = families.tiny_config("gemma4_text")
    check_attention(config)
    for values in ({"use_bidirectional_attention": "all"}, {"is_causal": False}):
        changed = type(config)(**config.to_dict() | values)
        with pytest.raises(UnsupportedModelError, match="use a checkpoint with causal attention"):
            check_attention(changed)


def test_bidirectional_attention_to_images_is_accepted() -> None:
    config = families.tiny_config("gemma4_text")
    check_attention(type(config)(**config.to_dict() | {"use_bidirectional_attention": "vision"}))
