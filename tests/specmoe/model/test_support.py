"""Models that cannot be offloaded are refused by their true reason, in one short line, before anything is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from specmoe import SpecMoE, UnsupportedModelError
from specmoe.model.checkpoint import build_shell, expert_modules
from specmoe.model.convert import build_store
from specmoe.model.support import check_config
from tests import families

REASONS = {
    "t5": "t5 is an encoder-decoder",
    "deepseek_v32": "attention of type 'indexed_attention'",
    "deepseek_v4": "attention of type 'compressed_sparse_attention'",
    "qwen4_exp_text": "layers of type 'linear_attention', whose state cannot be restored",
    "kimi_linear": "layers of type 'linear_attention', whose state cannot be restored",
    "nemotron_h": "whose state cannot be restored",
    "lfm2_moe": "layers of type 'conv', whose state cannot be restored",
    "jamba": "layers of type 'linear_attention', whose state cannot be restored",
    "granitemoehybrid": "layers of type 'linear_attention', whose state cannot be restored",
    "minimax": "layers of type 'linear_attention', whose state cannot be restored",
    "doge": "computes its experts in DogeCDMoE, outside transformers' experts interface",
    "muse_spark": "no causal language model for muse_spark alone",
    "llama": "LlamaForCausalLM has no MoE layer",
    "mamba": "layers of type 'linear_attention', whose state cannot be restored",
    "bert": "BertLMHeadModel has no MoE layer",
}


@pytest.mark.parametrize("family", REASONS)
def test_the_true_reason_is_named_before_anything_is_written(family: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    config = families.tiny_config(family) if family in families.moe_families() else CONFIG_MAPPING[family]()
    config.save_pretrained(folder)
    save_file({"lm_head.weight": torch.zeros(2, 2)}, folder / "model.safetensors", metadata={"format": "pt"})
    before = sorted(folder.iterdir())
    for make in (lambda: build_store(folder, folder / "store"), lambda: SpecMoE.from_pretrained(folder)):
        with pytest.raises(UnsupportedModelError, match=REASONS[family]) as caught:
            make()
        assert len(str(caught.value)) < 300
        assert "\n" not in str(caught.value)
    assert sorted(folder.iterdir()) == before


IMPOSSIBLE: dict[str, tuple[str, dict[str, Any], str]] = {
    "a window of one token": ("mixtral", {"sliding_window": 1}, "sliding_window=1 leaves no earlier token"),
    "a window of no token": ("mixtral", {"sliding_window": 0}, "sliding_window=0 leaves no earlier token"),
    "a chunk of one token": ("llama4_text", {"attention_chunk_size": 1}, "attention_chunk_size=1 leaves no earlier"),
    "more picks in a part of the config": (
        "dbrx",
        {"ffn_config": {"ffn_hidden_size": 16, "moe_num_experts": 4, "moe_top_k": 5}},
        "moe_top_k is 5 for layers of 4 experts",
    ),
    "more picks by another name": ("gemma4_text", {"top_k_experts": 9}, "top_k_experts is 9 for layers of 8 experts"),
    "more picks in one layer": ("hunyuan_v1_moe", {"moe_topk": [2, 2, 9, 2]}, "is 9 for layers of 8 experts"),
    "more picks than with identity experts": ("longcat_flash", {"moe_topk": 13}, "is 13 for layers of 12 experts"),
    "a flag in quotes": ("nllb-moe", {"experts_follow_router": "false"}, "is 'false' in config.json: write true or"),
    "one expert where a token has two": ("nllb-moe", {"num_experts": 1}, "num_experts=1 leaves no second expert"),
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_a_config_that_cannot_be_followed_is_refused_before_weights_are_read(case: str, tmp_path: Path) -> None:
    family, values, message = IMPOSSIBLE[case]
    families.tiny_config(family).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    with pytest.raises(UnsupportedModelError, match=message) as caught:
        build_shell(tmp_path, torch.float32)
    assert len(str(caught.value)) < 300


def test_a_token_may_have_as_many_experts_as_there_are_with_identity_experts(tmp_path: Path) -> None:
    families.tiny_config("longcat_flash").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"moe_topk": 12}))
    assert expert_modules(build_shell(tmp_path, torch.float32))


def test_a_window_that_no_layer_uses_may_be_of_any_size() -> None:
    config = families.tiny_config("mixtral")
    config.sliding_window, config.layer_types = 0, ["full_attention"] * 4
    check_config(config)
