"""The expert store: conversion, layout, and one clear error for every kind of damage."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from specmoe import ExpertStore, SpecMoE, StoreError, UnsupportedModelError
from specmoe.model.convert import build_store, open_or_build
from specmoe.offload.device import CpuDevice, allocate_pages
from specmoe.offload.link import Link
from specmoe.offload.sources import DiskSource
from specmoe.offload.store import round_to_pages
from tests.conftest import build, prompts


@pytest.fixture
def store(tiny: tuple[Path, PreTrainedModel], tmp_path: Path) -> ExpertStore:
    return build_store(tiny[0], tmp_path / "store")


@pytest.mark.parametrize("family", ["qwen3", "mixtral-sliding-window", "deepseek-v3"])
def test_stored_experts_equal_the_models_fused_weights(family: str, tmp_path: Path) -> None:
    model = build(family, tmp_path / "model")
    store = build_store(tmp_path / "model", tmp_path / "store")
    modules = dict(model.named_modules())
    source = DiskSource(store)
    for layer, spec in enumerate(store.layers):
        for expert in range(spec.experts):
            buffer = allocate_pages(spec.stride_bytes)
            source.read(layer, expert, memoryview(buffer.numpy()))
            for name, tensor in store.tensors(layer, buffer).items():
                assert torch.equal(tensor, getattr(modules[spec.module], name)[expert])
    source.close()


def test_dense_layers_have_no_file(tmp_path: Path) -> None:
    build("qwen3-dense-between", tmp_path / "model")
    store = build_store(tmp_path / "model", tmp_path / "store")
    assert [spec.model_layer for spec in store.layers] == [1, 3]


def test_every_expert_starts_at_a_page(store: ExpertStore) -> None:
    for spec in store.layers:
        assert spec.stride_bytes % 4096 == 0
        assert spec.stride_bytes - spec.expert_bytes < 4096


@given(st.integers(1, 10**9))
def test_rounding_to_pages_is_the_smallest_multiple_that_fits(nbytes: int) -> None:
    rounded = round_to_pages(nbytes)
    assert rounded % 4096 == 0
    assert 0 <= rounded - nbytes < 4096


def test_verify_accepts_a_sound_store(store: ExpertStore) -> None:
    store.verify()


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_any_flipped_byte_of_an_expert_is_found(data: st.DataObject, tiny: tuple[Path, PreTrainedModel]) -> None:
    folder = tiny[0] / "store-to-damage"
    store = open_or_build(tiny[0], folder)
    layer = data.draw(st.integers(0, len(store.layers) - 1))
    spec = store.layers[layer]
    expert = data.draw(st.integers(0, spec.experts - 1))
    place = expert * spec.stride_bytes + data.draw(st.integers(0, spec.expert_bytes - 1))
    file = store.layer_file(layer)
    original = file.read_bytes()
    try:
        damaged = bytearray(original)
        damaged[place] ^= 0x10
        file.write_bytes(damaged)
        with pytest.raises(StoreError, match=rf"expert {expert} of layer {spec.model_layer} .* corrupt"):
            store.verify()
    finally:
        file.write_bytes(original)


def test_a_corrupt_expert_stops_generation_with_its_name(
    store: ExpertStore, tiny: tuple[Path, PreTrainedModel]
) -> None:
    file = store.layer_file(1)
    data = bytearray(file.read_bytes())
    for expert in range(store.layers[1].experts):
        data[expert * store.layers[1].stride_bytes] ^= 0xFF
    file.write_bytes(data)
    ids, mask = prompts(2)
    with (
        SpecMoE.from_pretrained(tiny[0], store=store.path, gamma=0, expert_budget="30%") as engine,
        pytest.raises(StoreError, match=r"layer 1 .* corrupt .*convert the checkpoint again"),
    ):
        engine.generate(ids, mask, max_new_tokens=4)


def test_generation_works_again_after_an_error(store: ExpertStore, tiny: tuple[Path, PreTrainedModel]) -> None:
    file = store.layer_file(2)
    sound = file.read_bytes()
    file.write_bytes(bytes(len(sound)))
    ids, mask = prompts(2)
    with SpecMoE.from_pretrained(tiny[0], store=store.path, gamma=2, draft_experts=2, expert_budget="40%") as engine:
        with pytest.raises(StoreError):
            engine.generate(ids, mask, max_new_tokens=4)
        file.write_bytes(sound)
        engine.reset()
        assert engine.generate(ids, mask, max_new_tokens=4).sequences.shape[1] == ids.shape[1] + 4


def test_a_truncated_file_is_refused_at_opening(store: ExpertStore) -> None:
    file = store.layer_file(0)
    file.write_bytes(file.read_bytes()[:-4096])
    with pytest.raises(StoreError, match="truncated"):
        ExpertStore.open(store.path)


def test_a_file_truncated_while_open_is_an_error_not_garbage(store: ExpertStore) -> None:
    link = Link(DiskSource(store), store, CpuDevice())
    file = store.layer_file(0)
    file.write_bytes(file.read_bytes()[:4096])
    transfer = link.submit(0, store.layers[0].experts - 1, allocate_pages(store.slot_bytes))
    with pytest.raises(StoreError, match="truncated while open"):
        link.wait(transfer)
    link.close()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{ not json", "is not JSON"),
        ("[]", "is not an expert store index"),
        ('{"format": "specmoe-expert-store", "version": 99}', "store version 99, this release reads version 1"),
        ('{"format": "specmoe-expert-store", "version": 1}', "is malformed"),
    ],
)
def test_a_bad_index_is_refused(store: ExpertStore, content: str, message: str) -> None:
    (store.path / "index.json").write_text(content)
    with pytest.raises(StoreError, match=message):
        ExpertStore.open(store.path)


def test_a_missing_store_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="build_store"):
        ExpertStore.open(tmp_path)


def test_a_store_of_another_checkpoint_is_refused(store: ExpertStore, tmp_path: Path) -> None:
    build("olmoe", tmp_path / "other")
    with pytest.raises(StoreError, match="another checkpoint"):
        open_or_build(tmp_path / "other", store.path)


def test_a_store_of_another_dtype_is_refused(store: ExpertStore, tiny: tuple[Path, PreTrainedModel]) -> None:
    with pytest.raises(StoreError, match=r"not torch\.bfloat16: delete it"):
        open_or_build(tiny[0], store.path, torch.bfloat16)


def test_a_model_without_experts_is_refused(tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match="no MoE layer"):
        SpecMoE.from_pretrained(tmp_path)


def test_an_unknown_model_family_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no-such-family"}))
    with pytest.raises(UnsupportedModelError, match="no causal language model that transformers can build"):
        SpecMoE.from_pretrained(tmp_path)


def test_a_checkpoint_with_a_missing_expert_is_refused(tiny: tuple[Path, PreTrainedModel], tmp_path: Path) -> None:
    shutil.copytree(tiny[0], tmp_path / "model", ignore=shutil.ignore_patterns("*store*"))
    file = tmp_path / "model" / "model.safetensors"
    tensors = {k: v for k, v in load_file(file).items() if ".layers.1.mlp.experts.5." not in k}
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(UnsupportedModelError, match="has 8 experts, the checkpoint holds 7"):
        build_store(tmp_path / "model", tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_a_truncated_checkpoint_is_refused(tiny: tuple[Path, PreTrainedModel], tmp_path: Path) -> None:
    shutil.copytree(tiny[0], tmp_path / "model", ignore=shutil.ignore_patterns("*store*"))
    file = tmp_path / "model" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(UnsupportedModelError, match=r"model\.safetensors cannot be read"):
        SpecMoE.from_pretrained(tmp_path / "model")


def test_progress_counts_every_expert(tiny: tuple[Path, PreTrainedModel], tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    build_store(tiny[0], tmp_path / "store", progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 24) for i in range(1, 25)]
