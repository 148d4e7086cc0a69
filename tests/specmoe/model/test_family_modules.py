"""Families with modules of their own: only the router's experts are streamed, and every stored key has a meaning."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from specmoe import SpecMoE, UnsupportedModelError
from specmoe.model.checkpoint import Checkpoint, build_shell
from specmoe.recorder import NoRecorder
from tests import families
from tests.conftest import prompts, reference
from tests.specmoe.model.checkpoints import edit

OWN = ("dbrx", "jetmoe", "llama4_text", "longcat_flash")


class Picked(NoRecorder):
    """The experts that each layer's router picked for valid tokens."""

    def __init__(self) -> None:
        self.experts: dict[int, set[int]] = {}

    def routed(self, layer: int, mode: str, index: torch.Tensor, valid: torch.Tensor) -> None:
        self.experts.setdefault(layer, set()).update(index[valid].flatten().tolist())


@pytest.mark.parametrize("family", OWN)
def test_exactly_the_picked_experts_are_asked_for(family: str, tmp_path: Path) -> None:
    families.build(family, tmp_path / "model")
    ids, mask = prompts(2, longest=5)
    picked = Picked()
    with SpecMoE.from_pretrained(tmp_path / "model", store=tmp_path / "store", gamma=0) as engine:
        stats = engine.generate(ids, mask, max_new_tokens=1, eos_token_id=None, pad_token_id=0, recorder=picked).stats
        sizes = [layer.experts for layer in engine.store.layers]
    assert stats is not None
    with_weights = [sum(expert < sizes[layer] for expert in experts) for layer, experts in picked.experts.items()]
    assert len(with_weights) == len(sizes)
    assert stats.prefill.experts.requests == stats.prefill.link.transfers == sum(with_weights)


def test_identity_experts_of_longcat_are_picked_and_not_stored(tmp_path: Path) -> None:
    families.build("longcat_flash", tmp_path / "model")
    picked = Picked()
    ids, mask = prompts(3)
    with SpecMoE.from_pretrained(tmp_path / "model", store=tmp_path / "store", gamma=0) as engine:
        engine.generate(ids, mask, max_new_tokens=1, eos_token_id=None, pad_token_id=0, recorder=picked)
        assert {layer.experts for layer in engine.store.layers} == {8}
    assert all(8 in experts for experts in picked.experts.values())
    ignored = Checkpoint(tmp_path / "model", build_shell(tmp_path / "model")).ignored
    with safe_open(tmp_path / "model" / "model.safetensors", framework="pt") as file:
        keys = set(file.keys())
    assert set(ignored) == {k for k in keys if any(f".mlp.experts.{i}." in k for i in (8, 9, 10, 11))}
    assert len(ignored) == 2 * 4 * 2


def test_experts_with_weights_are_not_taken_for_identity_experts(tmp_path: Path) -> None:
    families.build("longcat_flash", tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"n_routed_experts": 6, "zero_expert_num": 6}))
    with pytest.raises(UnsupportedModelError, match="expert 6 is one too many"):
        Checkpoint(tmp_path / "model", build_shell(tmp_path / "model"))


def test_merged_slices_are_not_computed_for_picks_of_no_expert(tmp_path: Path) -> None:
    model = families.build("longcat_flash", tmp_path / "model")
    ids, mask = prompts(3)
    with SpecMoE.from_pretrained(tmp_path / "model", store=tmp_path / "store", gamma=0) as engine:
        engine.calibrate(ids, mask)
    with SpecMoE.from_pretrained(
        tmp_path / "model", store=tmp_path / "store", gamma=3, substitution="merged", merged_experts=2
    ) as engine:
        output = engine.generate(ids, mask, max_new_tokens=6, eos_token_id=None, pad_token_id=0)
    assert torch.equal(output.sequences, reference(model, ids, mask, 6))


def test_dbrx_that_transformers_cannot_run_is_refused(tmp_path: Path) -> None:
    families.build("dbrx", tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text())
    config["attn_config"]["clip_qkv"] = None
    path.write_text(json.dumps(config))
    with pytest.raises(RuntimeError, match=r"min.*max"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "model")(torch.tensor([[1, 2]]))
    with pytest.raises(UnsupportedModelError, match="without clip_qkv: set it in attn_config"):
        SpecMoE.from_pretrained(tmp_path / "model", store=tmp_path / "store")
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("rows", [0, 1])
def test_dbrx_matrices_of_another_number_of_experts_are_refused(rows: int, tmp_path: Path) -> None:
    families.build("dbrx", tmp_path / "model")
    key = "transformer.blocks.0.ffn.experts.mlp.w2"
    edit(tmp_path / "model", lambda tensors: tensors | {key: tensors[key][: 7 * 16 + rows].clone()})
    with pytest.raises(UnsupportedModelError, match=key.replace(".", r"\.")):
        Checkpoint(tmp_path / "model", build_shell(tmp_path / "model"))
