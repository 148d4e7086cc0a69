"""Block FP8 and MXFP4 are loaded bit for bit as transformers dequantises them; other methods are refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import (
    FineGrainedFP8Config,
    GptOssConfig,
    GptOssForCausalLM,
    Mxfp4Config,
    PreTrainedModel,
    Qwen3MoeForCausalLM,
)

from specmoe import SpecMoE, UnsupportedModelError
from specmoe.model.convert import build_store
from tests.conftest import VOCAB, build
from tests.specmoe.model.checkpoints import Tensors, differences, edit, stored_experts, to_block_fp8, to_mxfp4

FP8 = {"quant_method": "fp8", "weight_block_size": [16, 16], "activation_scheme": "dynamic"}
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def _refused_before_writing(folder: Path, match: str) -> None:
    """Both ways to build a store refuse the checkpoint in under 300 characters and leave nothing behind."""
    for make in (lambda: build_store(folder, folder / "store"), lambda: SpecMoE.from_pretrained(folder)):
        before = sorted(folder.parent.rglob("*"))
        with pytest.raises(UnsupportedModelError, match=match) as caught:
            make()
        assert len(str(caught.value)) < 300
        assert sorted(folder.parent.rglob("*")) == before


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", ["qwen3", "deepseek-v3", "qwen3-next"])
def test_block_fp8_equals_transformers_dequantised_load(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    build(family, tmp_path / "model")
    edit(tmp_path / "model", lambda t: to_block_fp8(t, 8), quantization_config=FP8 | {"weight_block_size": [8, 8]})
    settings = FineGrainedFP8Config(dequantize=True, weight_block_size=(8, 8))
    assert differences(tmp_path / "model", dtype, tmp_path, quantization_config=settings) == []


def test_block_fp8_without_a_quantization_config_is_dequantised_too(tmp_path: Path) -> None:
    for name, config in (("declared", {"quantization_config": FP8}), ("undeclared", {})):
        build("qwen3", tmp_path / name)
        edit(tmp_path / name, to_block_fp8, **config)
    declared = stored_experts(tmp_path / "declared", torch.bfloat16, tmp_path / "declared")
    undeclared = stored_experts(tmp_path / "undeclared", torch.bfloat16, tmp_path / "undeclared")
    assert declared.keys() == undeclared.keys()
    assert all(torch.equal(declared[name], undeclared[name]) for name in declared)


def test_a_matrix_that_ends_within_a_block_takes_each_scale_where_the_config_says(tmp_path: Path) -> None:
    model = build("qwen3", tmp_path / "model")  # experts of 16 x 32: blocks of 12 end within the last
    edit(tmp_path / "model", lambda t: to_block_fp8(t, 12), quantization_config=FP8 | {"weight_block_size": [12, 12]})
    for name, tensor in stored_experts(tmp_path / "model", torch.float32, tmp_path).items():
        assert torch.allclose(tensor, model.get_parameter(name), rtol=0.07, atol=0.01)


def test_generation_from_block_fp8_equals_transformers(tmp_path: Path) -> None:
    build("qwen3", tmp_path / "model")
    edit(tmp_path / "model", to_block_fp8, quantization_config=FP8)
    expected = _dequantised(tmp_path / "model")
    ids = torch.tensor([[5, 9, 3]])
    with SpecMoE.from_pretrained(
        tmp_path / "model", dtype=torch.float32, gamma=2, draft_experts=2, expert_budget="50%"
    ) as engine:
        output = engine.generate(ids, max_new_tokens=8)
    wanted = expected.generate(ids, max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert output.sequences.tolist() == wanted.tolist()


def _dequantised(folder: Path) -> PreTrainedModel:
    settings = FineGrainedFP8Config(dequantize=True, weight_block_size=(16, 16))
    model: PreTrainedModel = Qwen3MoeForCausalLM.from_pretrained(
        folder, dtype=torch.float32, quantization_config=settings
    )
    return model.eval()


def _gpt_oss(folder: Path) -> None:
    config = GptOssConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_local_experts=4,
        num_experts_per_tok=2,
        pad_token_id=0,
        eos_token_id=None,
    )
    torch.manual_seed(0)
    GptOssForCausalLM(config).save_pretrained(folder)


@pytest.mark.parametrize("dtype", DTYPES)
def test_mxfp4_equals_transformers_dequantised_load(dtype: torch.dtype, tmp_path: Path) -> None:
    _gpt_oss(tmp_path / "model")
    edit(tmp_path / "model", to_mxfp4, quantization_config={"quant_method": "mxfp4"})
    settings = Mxfp4Config(dequantize=True)
    assert differences(tmp_path / "model", dtype, tmp_path, quantization_config=settings) == []


def test_mxfp4_blocks_without_their_scales_are_refused(tmp_path: Path) -> None:
    _gpt_oss(tmp_path / "model")
    edit(tmp_path / "model", lambda t: _without(to_mxfp4(t), "layers.1.mlp.experts.down_proj_scales"))
    _refused_before_writing(tmp_path / "model", r"down_proj_blocks holds U8 numbers without .*down_proj_scales")


def _without(tensors: Tensors, part: str) -> Tensors:
    return {key: tensor for key, tensor in tensors.items() if part not in key}


def test_fp8_without_scales_is_refused(tmp_path: Path) -> None:
    build("qwen3", tmp_path / "model")
    edit(tmp_path / "model", lambda t: _without(to_block_fp8(t), "_scale_inv"))
    _refused_before_writing(tmp_path / "model", "holds F8_E4M3 numbers without weight_scale_inv")


@pytest.mark.parametrize("key", ["layers.1.mlp.experts.5.up_proj", "layers.2.self_attn.o_proj"])
def test_one_fp8_weight_without_its_scale_is_refused_by_name(key: str, tmp_path: Path) -> None:
    build("qwen3", tmp_path / "model")
    edit(tmp_path / "model", lambda t: _without(to_block_fp8(t), f"{key}.weight_scale_inv"))
    _refused_before_writing(tmp_path / "model", f"{key}.weight holds F8_E4M3 numbers without")


def test_scales_of_a_wrong_shape_are_refused(tmp_path: Path) -> None:
    key = "model.layers.0.self_attn.q_proj.weight_scale_inv"
    build("qwen3", tmp_path / "model")
    edit(tmp_path / "model", lambda t: to_block_fp8(t) | {key: torch.ones(5, 3)})
    _refused_before_writing(tmp_path / "model", r"self_attn\.q_proj")


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"quant_method": "awq", "bits": 4}, "awq"),
        ({"quant_method": "compressed-tensors"}, "compressed-tensors"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes int8"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "bitsandbytes 4-bit"),
        ({"quant_method": "a-method-of-next-year"}, "a-method-of-next-year"),
    ],
)
def test_other_methods_are_refused_by_name(settings: dict[str, object], name: str, tmp_path: Path) -> None:
    build("qwen3", tmp_path / "model")
    edit(tmp_path / "model", lambda t: t, quantization_config=settings)
    _refused_before_writing(tmp_path / "model", rf"quantised with {name}.*model\.dequantize\(\)")


@pytest.mark.parametrize(
    ("suffix", "name"), [("SCB", "bitsandbytes int8"), ("absmax", "bitsandbytes 4-bit"), ("qweight", "GPTQ or AWQ")]
)
def test_other_methods_are_recognised_by_their_keys(suffix: str, name: str, tmp_path: Path) -> None:
    build("qwen3", tmp_path / "model")
    edit(tmp_path / "model", lambda t: t | {f"model.layers.0.self_attn.q_proj.{suffix}": torch.ones(4)})
    _refused_before_writing(tmp_path / "model", f"quantised with {name}")


def test_integers_in_place_of_weights_are_refused(tmp_path: Path) -> None:
    key = "model.layers.1.mlp.experts.3.gate_proj.weight"
    build("qwen3", tmp_path / "model")
    edit(tmp_path / "model", lambda t: {k: v.to(torch.int8) if k == key else v for k, v in t.items()})
    _refused_before_writing(tmp_path / "model", r"experts\.3\.gate_proj\.weight holds I8")
