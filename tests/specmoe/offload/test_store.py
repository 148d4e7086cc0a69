"""A store is page-aligned, and every kind of damage to it is one clear error."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

from specmoe import ExpertStore, SpecMoE, StoreError
from specmoe.model.convert import build_store, open_or_build
from specmoe.offload.device import CpuDevice, allocate_pages
from specmoe.offload.link import Link
from specmoe.offload.sources import DiskSource
from specmoe.offload.store import round_to_pages
from tests.conftest import examples, prompts


@pytest.fixture
def store(tiny: tuple[Path, PreTrainedModel], tmp_path: Path) -> ExpertStore:
    return build_store(tiny[0], tmp_path / "store")


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


@settings(max_examples=examples(30))
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


def test_a_missing_store_is_refused_with_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="build_store"):
        ExpertStore.open(tmp_path)
