"""Expert affinity: which pinned expert replaces one that is not pinned (paper, section on draft experts).

Affinity is the L2 distance between two experts' flattened weights, precomputed per layer as an E x E
table in 16 bits and stored beside the experts.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch

from specmoe.errors import StoreError, UnsupportedModelError
from specmoe.offload.store import ExpertStore, LayerSpec

_CHUNK_BYTES = 4 << 20


def table_path(store: ExpertStore, layer: int) -> Path:
    """File of a MoE layer's E x E table."""
    return _table_of(store.layer_file(layer))


def _table_of(layer_file: Path) -> Path:
    return layer_file.with_name(f"affinity_{layer_file.stem.removeprefix('layer_')}.npy")


def build_table(layer_file: Path, spec: LayerSpec, dtype: torch.dtype) -> None:
    """Compute and save the table of weight distances of a layer file.

    Works in chunks of columns, so that memory use is some mebibytes however large a layer is.  Distances are divided
    by the layer's largest, so that float16 keeps three digits of each.

    Raises:
        UnsupportedModelError: an expert holds NaN or infinite weights.
    """
    experts = np.memmap(layer_file, dtype=np.uint8, mode="r").reshape(spec.experts, spec.stride_bytes)
    columns = max(1, _CHUNK_BYTES // spec.experts // torch.float32.itemsize)  # the same sums for every stored dtype
    stored = torch.empty(spec.experts, columns, dtype=dtype)
    values = torch.empty(spec.experts, columns)
    gram = torch.zeros(spec.experts, spec.experts, dtype=torch.float64)
    for start in range(0, spec.expert_bytes, columns * dtype.itemsize):
        end = min(start + columns * dtype.itemsize, spec.expert_bytes)
        width = (end - start) // dtype.itemsize
        stored.view(torch.uint8)[:, : end - start].numpy()[:] = experts[:, start:end]
        chunk = values[:, :width].copy_(stored[:, :width])  # [E, columns]
        gram += chunk @ chunk.t()  # by torch: numpy's own threads wait busily beside those of the conversion
    for expert in (~gram.diag().isfinite()).nonzero().flatten().tolist():  # or the square of a weight overflowed
        weights = torch.from_numpy(np.array(experts[expert, : spec.expert_bytes])).view(dtype)
        if not bool(weights.isfinite().all()):
            raise UnsupportedModelError(
                f"expert {expert} of layer {spec.model_layer} has NaN or infinite weights in {dtype}: load it in a "
                "wider dtype, or download the checkpoint again"
            )
    with _table_of(layer_file).open("wb") as out:
        np.save(out, distances(gram).numpy())
        out.flush()
        os.fsync(out.fileno())


def distances(gram: torch.Tensor) -> torch.Tensor:
    """L2 distances [E, E] from inner products [E, E], divided by the largest distance, in float16.

    An expert whose products overflow is as far from all others as the two that are farthest apart.
    """
    squared = gram.diag()[:, None] + gram.diag()[None, :] - 2 * gram
    distance = squared.clamp_min(0).sqrt().fill_diagonal_(0)
    largest = distance.nan_to_num(0, posinf=0).max().clamp_min(1e-30)
    return (distance / largest).nan_to_num(1).clamp_max(1).to(torch.float16)


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
