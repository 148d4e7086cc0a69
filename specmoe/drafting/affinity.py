"""Expert affinity: which pinned expert replaces one that is not pinned (paper, section on draft experts).

Affinity is the L2 distance between two experts' flattened weights, precomputed per layer as an E x E
table in 16 bits and stored beside the experts.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from specmoe.errors import StoreError
from specmoe.offload.store import ExpertStore

_CHUNK_BYTES = 1 << 20


def table_path(store: ExpertStore, layer: int) -> Path:
    """File of a MoE layer's E x E table."""
    return store.path / f"affinity_{store.layers[layer].model_layer:03d}.npy"


def build_tables(store: ExpertStore) -> int:
    """Compute and save every layer's table of weight distances; returns their total bytes.

    Works in column chunks of the layer file, so memory use is E times one mebibyte however large an expert
    is.  Distances are divided by the layer's largest, so that float16 keeps three digits of each.
    """
    total = 0
    for layer, spec in enumerate(store.layers):
        data = np.memmap(store.layer_file(layer), dtype=np.uint8, mode="r")
        experts = data.reshape(spec.experts, spec.stride_bytes)
        gram = torch.zeros(spec.experts, spec.experts, dtype=torch.float64)
        for start in range(0, spec.expert_bytes, _CHUNK_BYTES):
            raw = np.array(experts[:, start : min(start + _CHUNK_BYTES, spec.expert_bytes)])
            chunk = torch.from_numpy(raw).view(store.dtype).float()  # [E, columns]
            gram += (chunk @ chunk.t()).double()
        table = distances(gram).numpy()
        np.save(table_path(store, layer), table)
        total += table.nbytes
    return total


def distances(gram: torch.Tensor) -> torch.Tensor:
    """L2 distances [E, E] from inner products [E, E], divided by the largest distance, in float16."""
    squared = gram.diag()[:, None] + gram.diag()[None, :] - 2 * gram
    distance = squared.clamp_min(0).sqrt().fill_diagonal_(0)
    return (distance / distance.max().clamp_min(1e-30)).to(torch.float16)


def table_bytes(store: ExpertStore) -> int:
    """Bytes of all layers' tables (16 bits per pair of experts)."""
    return sum(2 * spec.experts**2 for spec in store.layers)


def load_table(store: ExpertStore, layer: int) -> torch.Tensor:
    """The layer's distances as float32 [E, E]; symmetric, zero diagonal, largest entry 1.

    Raises:
        StoreError: the table is missing or of another shape.
    """
    path = table_path(store, layer)
    experts = store.layers[layer].experts
    try:
        table = torch.from_numpy(np.load(path)).float()
    except (OSError, ValueError, EOFError) as error:
        raise StoreError(
            f"affinity table {path} cannot be read ({error}): delete the store and convert again"
        ) from error
    if table.shape != (experts, experts):
        raise StoreError(f"affinity table {path} has shape {tuple(table.shape)}: delete the store and convert again")
    return table


def substitution(table: torch.Tensor, pinned: list[int]) -> torch.Tensor:
    """For each expert the nearest pinned expert (itself if pinned): long [E] of expert ids.

    ``table`` is [E, E]; ties go to the pinned expert listed first.
    """
    candidates = torch.tensor(pinned, dtype=torch.long)
    return candidates[table[:, candidates].argmin(dim=1)]
