"""Merged slices are averages of clustered experts, built once per calibration, and refused when damaged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from specmoe import SpecMoE
from specmoe.drafting import calibration as calibrate
from specmoe.drafting import merged as merge
from specmoe.errors import StoreError
from specmoe.model.convert import open_or_build
from specmoe.offload.device import allocate_pages
from specmoe.offload.sources import DiskSource
from tests.conftest import build, prompts


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PreTrainedModel]:
    folder = tmp_path_factory.mktemp("calibrated")
    model = build("qwen3", folder)
    with SpecMoE.from_pretrained(folder, store=folder / "store", gamma=0) as engine:
        engine.calibrate(*prompts(6, seed=7))
    return folder, model


@pytest.mark.parametrize("slices", [1, 3, 8, 20])
def test_there_are_at_most_k_clusters_and_each_has_a_member(slices: int) -> None:
    distances = torch.rand(8, 8, generator=torch.Generator().manual_seed(0))
    labels = merge.clusters((distances + distances.t()).fill_diagonal_(0).half(), slices)
    assert len(labels) == 8
    assert sorted(set(labels.tolist())) == list(range(len(set(labels.tolist()))))
    assert len(set(labels.tolist())) <= slices


def test_similar_experts_share_a_cluster() -> None:
    places = torch.tensor([0.0, 5.0, 0.1, 5.1, 9.0])
    labels = merge.clusters((places[:, None] - places[None, :]).abs(), 3).tolist()
    assert labels[0] == labels[2] != labels[1] == labels[3] != labels[4]


def test_a_slice_is_the_average_of_its_cluster_weighted_by_use(calibrated: tuple[Path, PreTrainedModel]) -> None:
    folder, model = calibrated
    store = open_or_build(folder, folder / "store")
    calibration = calibrate.load(store)
    assert calibration is not None
    merged, assigned = merge.open_or_build(store, calibration, 3)
    for layer, decoder_layer in enumerate(model.model.layers):
        use = calibration.counts[layer] + 1
        for label in range(merged.layers[layer].experts):
            members = (assigned[layer] == label).nonzero().flatten()
            share = (use[members] / use[members].sum())[:, None, None]
            buffer = allocate_pages(store.slot_bytes)
            DiskSource(merged).read(layer, label, buffer.numpy().data)
            tensors = merged.tensors(layer, buffer)
            for name in ("gate_up_proj", "down_proj"):
                expected = (share * getattr(decoder_layer.mlp.experts, name)[members]).sum(dim=0)
                torch.testing.assert_close(tensors[name], expected.detach(), atol=1e-6, rtol=1e-5)
    merged.verify()


def test_merged_slices_are_built_once(calibrated: tuple[Path, PreTrainedModel]) -> None:
    folder, _ = calibrated
    store = open_or_build(folder, folder / "store")
    calibration = calibrate.load(store)
    assert calibration is not None
    first, _ = merge.open_or_build(store, calibration, 2)
    written = first.layer_file(0).stat().st_mtime_ns
    second, _ = merge.open_or_build(store, calibration, 2)
    assert second.layer_file(0).stat().st_mtime_ns == written


def test_a_new_calibration_builds_new_slices(calibrated: tuple[Path, PreTrainedModel], tmp_path: Path) -> None:
    folder, _ = calibrated
    store = open_or_build(folder, tmp_path / "store")
    near = torch.rand(8, 8, generator=torch.Generator().manual_seed(0))
    far = torch.rand(8, 8, generator=torch.Generator().manual_seed(1))
    assignments = []
    for table in (near, far):
        table = (table + table.t()).fill_diagonal_(0).half()
        calibration = calibrate.Calibration(1, [torch.ones(8)] * 3, [table] * 3)
        calibration.save(store)
        assignments.append(merge.open_or_build(store, calibration, 3)[1][0].tolist())
        assert assignments[-1] == merge.clusters(table, 3).tolist()
    assert assignments[0] != assignments[1]


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 cut"], ids=["empty", "cut"])
def test_damaged_slices_are_refused(damage: bytes, calibrated: tuple[Path, PreTrainedModel], tmp_path: Path) -> None:
    store = open_or_build(calibrated[0], tmp_path / "store")
    calibration = calibrate.Calibration(1, [torch.ones(8)] * 3, [(1 - torch.eye(8)).half()] * 3)
    merged, _ = merge.open_or_build(store, calibration, 2)
    (merged.path / "slices.npz").write_bytes(damage)
    with pytest.raises(StoreError, match="it will be rebuilt"):
        merge.open_or_build(store, calibration, 2)


def test_with_as_many_slices_as_experts_every_draft_is_accepted(calibrated: tuple[Path, PreTrainedModel]) -> None:
    """Slices of one expert each are the experts themselves, so that every draft is accepted."""
    folder, _ = calibrated
    ids, mask = prompts(2)
    with SpecMoE.from_pretrained(
        folder,
        store=folder / "store",
        gamma=3,
        draft_experts=1,
        substitution="merged",
        merged_experts=8,
        expert_budget=40 * open_or_build(folder, folder / "store").slot_bytes,
    ) as engine:
        stats = engine.generate(ids, mask, max_new_tokens=13).stats
    assert stats.acceptance_rate == 1.0
