"""Affinity is the distance between experts' weights, and the nearest pinned expert is the substitute."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedModel

from specmoe import ExpertStore
from specmoe.drafting import affinity


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


def test_substitution_keeps_pinned_experts_and_maps_the_rest_to_the_nearest() -> None:
    table = torch.tensor([[0.0, 0.9, 0.2, 0.5], [0.9, 0.0, 0.8, 0.3], [0.2, 0.8, 0.0, 0.6], [0.5, 0.3, 0.6, 0.0]])
    assert affinity.substitution(table, [1, 2]).tolist() == [2, 1, 2, 1]
