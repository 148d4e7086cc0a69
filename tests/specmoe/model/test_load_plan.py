"""Every key of a checkpoint is loaded, knowingly ignored, or refused by name before anything is written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM, PreTrainedModel

from specmoe import SpecMoE, UnsupportedModelError
from specmoe.model.checkpoint import Checkpoint, build_shell
from specmoe.model.convert import build_store
from tests.conftest import build, prompts, reference
from tests.specmoe.model.checkpoints import Tensors, edit

EXPERT = "model.layers.1.mlp.experts.5.up_proj.weight"


def _refused(folder: Path, match: str) -> None:
    with pytest.raises(UnsupportedModelError, match=match) as caught:
        build_store(folder, folder.parent / "store")
    assert len(str(caught.value)) < 300
    assert not (folder.parent / "store").exists()
    with pytest.raises(UnsupportedModelError, match=match):
        SpecMoE.from_pretrained(folder)
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        ["config.json", "generation_config.json", "model.safetensors"]
    )


@pytest.mark.parametrize(("layers", "others"), [(1, ""), (2, " and another key"), (3, " and 2 other keys")])
def test_a_key_that_nothing_claims_is_refused_by_name(layers: int, others: str, tmp_path: Path) -> None:
    keys = [f"model.layers.{layer}.self_attn.q_proj.bias" for layer in range(layers)]
    build("qwen3", tmp_path / "model")
    edit(tmp_path / "model", lambda t: t | {key: torch.ones(32) for key in keys})
    _refused(tmp_path / "model", rf"Qwen3MoeForCausalLM has no place for {keys[0]} \(F32\){others} of the checkpoint:")


def test_an_expert_of_a_wrong_shape_is_refused_by_name(tmp_path: Path) -> None:
    build("qwen3", tmp_path / "model")
    edit(tmp_path / "model", lambda t: t | {EXPERT: torch.ones(16, 31)})
    _refused(tmp_path / "model", rf"{EXPERT} has the shape \(16, 31\), the other experts have \(16, 32\)")


def test_experts_of_another_size_than_the_config_says_are_refused(tmp_path: Path) -> None:
    build("qwen3", tmp_path / "model")
    edit(tmp_path / "model", lambda t: t, moe_intermediate_size=24)
    _refused(tmp_path / "model", r"experts\.down_proj the shape \(8, 32, 16\), the model has \(8, 32, 24\)")


def test_another_weight_of_a_wrong_shape_is_refused_by_name(tmp_path: Path) -> None:
    key = "model.layers.0.self_attn.o_proj.weight"
    build("qwen3", tmp_path / "model")
    edit(tmp_path / "model", lambda t: t | {key: torch.ones(32, 31)})
    _refused(tmp_path / "model", rf"{key} gives {key} the shape \(32, 31\), the model has \(32, 32\)")


def test_a_missing_weight_is_refused_by_name(tmp_path: Path) -> None:
    key = "model.layers.2.input_layernorm.weight"
    build("qwen3", tmp_path / "model")
    edit(tmp_path / "model", lambda t: {k: v for k, v in t.items() if k != key})
    _refused(tmp_path / "model", f"lacks 1 weights of Qwen3MoeForCausalLM, the first is {key}")


def test_a_layer_without_its_experts_is_refused(tmp_path: Path) -> None:
    build("qwen3", tmp_path / "model")
    edit(tmp_path / "model", lambda t: {k: v for k, v in t.items() if "layers.1.mlp.experts" not in k})
    _refused(tmp_path / "model", r"lacks 2 weights of .*model\.layers\.1\.mlp\.experts")


def test_an_expert_too_many_is_refused(tmp_path: Path) -> None:
    build("qwen3", tmp_path / "model")
    edit(tmp_path / "model", lambda t: t | {EXPERT.replace(".5.", ".8."): torch.ones(16, 32)})
    _refused(tmp_path / "model", "has 8 experts, the checkpoint holds 9")


def test_two_names_of_one_weight_are_refused(tmp_path: Path) -> None:
    build("qwen3", tmp_path / "model")
    edit(tmp_path / "model", lambda t: t | {"norm.weight": torch.ones(32)})
    place = r"in model\.safetensors"
    both = rf"model\.norm\.weight {place} and norm\.weight {place} are both model\.norm\.weight"
    _refused(tmp_path / "model", both)


def test_a_layer_beyond_the_configs_is_refused(tmp_path: Path) -> None:
    build("qwen3", tmp_path / "model")
    edit(tmp_path / "model", lambda t: t, num_hidden_layers=2)
    _refused(tmp_path / "model", r"no place for model\.layers\.2\.")


def test_keys_without_the_base_models_prefix_are_found(tmp_path: Path) -> None:
    model = build("qwen3", tmp_path / "model")
    edit(tmp_path / "model", lambda t: {k.removeprefix("model."): v for k, v in t.items()})
    _generates_as(model, tmp_path / "model")


def test_rotary_frequencies_of_old_checkpoints_are_ignored(tmp_path: Path) -> None:
    model = build("qwen3", tmp_path / "model")
    edit(tmp_path / "model", lambda t: t | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)})
    _generates_as(model, tmp_path / "model")


@pytest.mark.parametrize("declared", [True, False])
def test_multi_token_prediction_layers_are_ignored_as_in_transformers(declared: bool, tmp_path: Path) -> None:
    model = build("deepseek-v3", tmp_path / "model")

    def with_prediction_layer(tensors: Tensors) -> Tensors:
        layer = {k.replace("layers.2.", "layers.3."): v.clone() for k, v in tensors.items() if "layers.2." in k}
        own = {"enorm": torch.ones(32), "hnorm": torch.ones(32), "eh_proj": torch.ones(32, 64)}
        return tensors | layer | {f"model.layers.3.{name}.weight": tensor for name, tensor in own.items()}

    edit(tmp_path / "model", with_prediction_layer, **({"num_nextn_predict_layers": 1} if declared else {}))
    _generates_as(model, tmp_path / "model")
    ignored = Checkpoint(tmp_path / "model", build_shell(tmp_path / "model")).ignored
    assert ignored["model.layers.3.mlp.experts.0.up_proj.weight"] == "multi-token prediction is not part of the model"


def test_tied_embeddings_need_one_of_both(tmp_path: Path) -> None:
    config = DeepseekV3Config(
        **build("deepseek-v3", tmp_path / "unused").config.to_dict() | {"tie_word_embeddings": True}
    )
    torch.manual_seed(0)
    model = DeepseekV3ForCausalLM(config).eval()
    model.save_pretrained(tmp_path / "model")
    _generates_as(model, tmp_path / "model")


def _generates_as(model: PreTrainedModel, folder: Path) -> None:
    ids, mask = prompts(2)
    with SpecMoE.from_pretrained(folder, dtype=torch.float32, gamma=2, draft_experts=2, expert_budget="50%") as engine:
        output = engine.generate(ids, mask, max_new_tokens=6)
    assert output.sequences.tolist() == reference(model, ids, mask, 6).tolist()


def test_an_adapter_beside_the_weights_is_refused(tmp_path: Path) -> None:
    build("qwen3", tmp_path / "model")
    (tmp_path / "model" / "adapter_config.json").write_text("{}")
    with pytest.raises(UnsupportedModelError, match="holds an adapter, which is not applied: merge it"):
        SpecMoE.from_pretrained(tmp_path / "model")


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"hidden_size": -3}, "can build.*negative dimension"),
        ({"hidden_size": "abc"}, "can build.*hidden_size"),
        ({"num_hidden_layers": 0}, "has no MoE layer"),
        ({"quantization_config": ["fp8"]}, "can build"),
        ({"quantization_config": {"quant_method": "fp8", "weight_block_size": "x"}}, "weight_block_size"),
    ],
)
def test_a_config_with_impossible_values_is_one_short_error(
    config: dict[str, object], match: str, tmp_path: Path
) -> None:
    build("qwen3", tmp_path / "model")
    edit(tmp_path / "model", lambda t: t, **config)
    _refused(tmp_path / "model", match)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int32, torch.uint8])
def test_numbers_that_are_no_weights_are_refused_by_name(dtype: torch.dtype, tmp_path: Path) -> None:
    build("qwen3", tmp_path / "model")
    edit(tmp_path / "model", lambda t: t | {EXPERT: torch.ones(16, 32, dtype=dtype)})
    _refused(tmp_path / "model", rf"{EXPERT} holds \w+ numbers of an unknown quantisation")
