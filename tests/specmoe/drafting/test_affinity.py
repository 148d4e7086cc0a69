"""Affinity is the distance between experts' weights, and the nearest pinned expert is the substitute."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedModel

from specmoe import ExpertStore
from specmoe.drafting import affinity
from specmoe.offload.device import PAGE_BYTES
from specmoe.offload.page_file import PageFile
from specmoe.offload.page_memory import PageMemory
from specmoe.offload.store import LayerSpec


def test_affinity_is_the_l2_distance_between_expert_weights(
    store: ExpertStore, tiny: tuple[Path, PreTrainedModel]
) -> None:
    experts = tiny[1].model.layers[1].mlp.experts
    flat = torch.cat([experts.gate_up_proj.flatten(1), experts.down_proj.flatten(1)], dim=1).detach()
    distance = torch.cdist(flat, flat)
    torch.testing.assert_close(affinity.load_table(store, 1), distance / distance.max(), atol=2e-3, rtol=2e-3)


def test_affinity_tables_are_sixteen_bits_wide(store: ExpertStore) -> None:
    experts = store.layers[0].experts
    assert affinity.table_path(store, 0).stat().st_size == 128 + experts * experts * 2  # npy header + E x E x 2


@pytest.mark.parametrize("kept_pages", [0, 7, 25], ids=["read again", "partly kept", "kept"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("common", [0.0, 3.0], ids=["independent", "alike"])
def test_tables_have_float16_accuracy_for_experts_in_any_order(
    common: float, dtype: torch.dtype, kept_pages: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(affinity, "_multiplies_bfloat16", lambda: True)  # slower elsewhere, not other numbers
    values = 25 * PAGE_BYTES // dtype.itemsize
    weights = (torch.randn(20, values) + common * torch.randn(values)).to(dtype)
    spec = LayerSpec(0, "", 20, 25 * PAGE_BYTES, 25 * PAGE_BYTES, "layer_000.bin", (), ("",) * 20)
    (tmp_path / spec.file).write_bytes(weights.view(torch.uint8).numpy().tobytes())
    products = affinity.Products(spec, dtype, kept_pages * PAGE_BYTES, PageMemory(4 << 20))
    for expert in torch.randperm(20).tolist():
        row = weights[expert].view(torch.uint8)
        products.measure(expert, row)
        products.add(expert, row)
    products.save(tmp_path / spec.file, PageFile.open(tmp_path / spec.file))
    found = torch.from_numpy(np.load(tmp_path / "affinity_000.npy")).double()
    exact = torch.cdist(weights.double(), weights.double(), compute_mode="donot_use_mm_for_euclid_dist")
    assert (found - exact / exact.max()).abs().max() < 2**-11


@given(st.integers(1, 300), st.integers(1, 2000))
def test_what_is_kept_of_an_expert_is_whole_chunks_of_it(experts: int, pages: int) -> None:
    spec = LayerSpec(0, "", experts, pages * PAGE_BYTES, pages * PAGE_BYTES, "", (), ())
    kept = affinity.kept_bytes(spec)
    assert 0 <= kept <= spec.stride_bytes
    assert kept % affinity._chunk_bytes(kept) == 0
    assert kept == 0 or affinity._chunk_bytes(kept) % PAGE_BYTES == 0


def test_narrow_products_are_refused_where_they_could_change_a_table() -> None:
    independent = torch.randn(4, 50_000).bfloat16()
    alike = independent + independent[0] * 3
    broken = independent.index_fill(1, torch.tensor(7), torch.nan)
    found = [affinity._narrow_products([rows], rows.double().square().sum(1)) for rows in (independent, alike, broken)]
    assert found[0] is not None
    assert found[1:] == [None, None]


def test_substitution_keeps_pinned_experts_and_maps_the_rest_to_the_nearest() -> None:
    table = torch.tensor([[0.0, 0.9, 0.2, 0.5], [0.9, 0.0, 0.8, 0.3], [0.2, 0.8, 0.0, 0.6], [0.5, 0.3, 0.6, 0.0]])
    assert affinity.substitution(table, [1, 2]).tolist() == [2, 1, 2, 1]
