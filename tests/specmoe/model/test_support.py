"""Models that cannot be offloaded are refused by their true reason, in one short line, before anything is written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from specmoe import SpecMoE, UnsupportedModelError
from specmoe.model.convert import build_store
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
