"""Low-bit copies are made once per store and number of bits, hold every expert, and are refused when damaged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from specmoe import ExpertStore, SpecMoE, StoreError
from specmoe.compute.codes import widened_expert
from specmoe.drafting import low_bit
from specmoe.model.convert import open_or_build
from specmoe.offload.device import allocate_pages, host_bytes
from specmoe.offload.sources import DiskSource
from tests import families
from tests.conftest import prompts


@pytest.fixture
def store(tiny: tuple[Path, PreTrainedModel], tmp_path: Path) -> ExpertStore:
    return open_or_build(tiny[0], tmp_path / "store")


def _read(store: ExpertStore, layer: int, expert: int) -> dict[str, torch.Tensor]:
    source, buffer = DiskSource(store), allocate_pages(store.slot_bytes)
    source.read(layer, expert, host_bytes(buffer))
    source.close()
    return store.tensors(layer, buffer)


def _generate(model: Path, store: Path) -> None:
    ids, mask = prompts(2)
    with SpecMoE.from_pretrained(model, store=store, draft_pool="low-bit", gamma=3, expert_budget="60%") as engine:
        engine.generate(ids, mask, max_new_tokens=3)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_every_expert_has_a_copy_near_it(bits: int, store: ExpertStore) -> None:
    copies = low_bit.open_or_build(store, bits, [False] * 3)
    copies.verify()
    for layer, spec in enumerate(store.layers):
        for expert in range(spec.experts):
            copy = widened_expert(low_bit.views(_read(copies, layer, expert)), 32)
            for name, weight in _read(store, layer, expert).items():
                error = (copy[name] - weight).square().mean() / weight.square().mean()
                assert error < {2: 0.14, 3: 0.045, 4: 0.011, 8: 1e-4}[bits], name


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
@pytest.mark.parametrize("bits", low_bit.BITS)
def test_what_copies_take_and_compute_with_is_known_before_they_are_made(
    bits: int, family: str, tmp_path: Path
) -> None:
    families.build(family, tmp_path / "model")
    store, turned = open_or_build(tmp_path / "model", tmp_path / "store"), family == "gpt_oss"
    assert low_bit.made(store) == []
    planned = [low_bit.planned_bytes(spec, bits, turned) for spec in store.layers]
    weights = _read(store, 0, 1)
    rounded = low_bit.rounded(weights, bits, turned)
    copies = low_bit.open_or_build(store, bits, [turned] * len(store.layers))
    assert low_bit.made(store) == [bits]
    assert planned == [spec.stride_bytes * spec.experts for spec in copies.layers]
    hidden = weights["down_proj"].shape[1 if turned else 0]
    wide = widened_expert(low_bit.views(_read(copies, 0, 1)), hidden)
    assert rounded.keys() == weights.keys()
    for name, weight in rounded.items():
        assert torch.equal(weight.t() if turned and weight.dim() == 2 else weight, wide[name])
        assert weight.shape == weights[name].shape


def test_copies_are_made_once(store: ExpertStore) -> None:
    first = low_bit.open_or_build(store, 4, [False] * 3)
    written = first.layer_file(0).stat().st_mtime_ns
    assert low_bit.open_or_build(store, 4, [False] * 3).layer_file(0).stat().st_mtime_ns == written
    assert {path.name for path in store.path.glob("low_bit_*")} == {"low_bit_4"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_weights_give_the_copies_of_the_same_weights_in_float32(
    dtype: torch.dtype, tiny: tuple[Path, PreTrainedModel], tmp_path: Path
) -> None:
    narrow = open_or_build(tiny[0], tmp_path / "narrow", dtype)
    copies = low_bit.open_or_build(narrow, 4, [False] * 3)
    copy, weights = low_bit.views(_read(copies, 1, 2)), _read(narrow, 1, 2)
    error = (widened_expert(copy, 32)["down_proj"] - weights["down_proj"].float()).square().mean()
    assert error < 0.011 * weights["down_proj"].float().square().mean()


def test_transposed_matrices_and_biases(tmp_path: Path) -> None:
    families.build("gpt_oss", tmp_path / "model")
    store = open_or_build(tmp_path / "model", tmp_path / "store")
    copies = low_bit.open_or_build(store, 8, [True] * len(store.layers))
    weights, copy = _read(store, 0, 1), low_bit.views(_read(copies, 0, 1))
    wide = widened_expert(copy, weights["down_proj"].shape[1])
    for name, weight in weights.items():
        expected = weight.t() if weight.dim() == 2 else weight
        torch.testing.assert_close(wide[name], expected, rtol=0, atol=0.01 * float(weight.abs().max()))


@pytest.mark.parametrize("damage", ["index", "short", "byte", "other"])
def test_a_damaged_folder_is_refused_with_the_fix(
    damage: str, tiny: tuple[Path, PreTrainedModel], tmp_path: Path
) -> None:
    _generate(tiny[0], tmp_path / "store")
    folder = tmp_path / "store" / "low_bit_4"
    file = next(folder.glob("layer_*.bin"))
    if damage == "index":
        (folder / "index.json").write_text("{")
    elif damage == "short":
        file.write_bytes(file.read_bytes()[:-4096])
    elif damage == "byte":
        data = bytearray(file.read_bytes())
        data[100] ^= 1
        file.write_bytes(data)
    else:
        (folder / "index.json").write_text((folder / "index.json").read_text().replace('"bits": 4', '"bits": 3'))
    with pytest.raises(StoreError, match=r"low_bit_4.* it will be rebuilt"):
        _generate(tiny[0], tmp_path / "store")
