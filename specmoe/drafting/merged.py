"""Merged experts: K averaged experts per layer with which every pick can draft, built once per checkpoint.

The experts of a layer are clustered by the distance of their outputs; a slice is the average of a
cluster's weights, each expert weighted by its use on the calibration prompts.  Slices are stored like
experts, with ids from E on.  Not in the paper; the idea comes from a public re-implementation.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from specmoe.drafting.calibration import Calibration
from specmoe.errors import StoreError
from specmoe.files import folder_appears
from specmoe.offload.device import allocate_pages, host_bytes
from specmoe.offload.sources import DiskSource
from specmoe.offload.store import ExpertStore, LayerSpec, write_expert, write_index

_SLICES = "slices.npz"


def clusters(distances: torch.Tensor, slices: int) -> torch.Tensor:
    """Cluster of each expert, long [E] in 0 .. K-1, from distances [E, E]; at most ``slices`` clusters."""
    experts = len(distances)
    if slices >= experts:
        return torch.arange(experts)
    symmetric = (distances.double() + distances.double().t()) / 2
    tree = linkage(squareform(symmetric.fill_diagonal_(0).numpy(), checks=False), method="average")
    labels = fcluster(tree, t=slices, criterion="maxclust")
    return torch.from_numpy(np.unique(labels, return_inverse=True)[1]).long()


def open_or_build(store: ExpertStore, calibration: Calibration, slices: int) -> tuple[ExpertStore, list[torch.Tensor]]:
    """A store's merged slices and, per layer, the slice of each expert (long [E]); built on first use.

    Raises:
        StoreError: a damaged or unwritable folder.
    """
    path = store.path / f"merged_{slices:03d}"
    if not path.exists():
        _build(store, calibration, slices, path)
    merged = ExpertStore.open(path)
    try:
        with np.load(path / _SLICES) as arrays:
            assigned = [torch.from_numpy(arrays[f"layer_{i}"]) for i in range(len(store.layers))]
    except (OSError, KeyError, ValueError, EOFError, BadZipFile) as error:
        raise StoreError(f"{path / _SLICES} cannot be read ({error!r}): delete {path}, it will be rebuilt") from error
    return merged, assigned


def _build(store: ExpertStore, calibration: Calibration, slices: int, path: Path) -> None:
    source = DiskSource(store)
    assigned = [clusters(table, slices) for table in calibration.distances]
    try:
        with folder_appears(path) as partial:
            layers = [
                _merge_layer(store, source, layer, assigned[layer], calibration.counts[layer], partial)
                for layer in range(len(store.layers))
            ]
            np.savez(partial / _SLICES, allow_pickle=False, **{f"layer_{i}": a.numpy() for i, a in enumerate(assigned)})
            write_index(partial, store.dtype, layers, store.source)
    except OSError as error:
        raise StoreError(f"cannot write merged experts at {path} ({error}): free disk space") from error
    finally:
        source.close()


def _merge_layer(
    store: ExpertStore, source: DiskSource, layer: int, assigned: torch.Tensor, counts: torch.Tensor, folder: Path
) -> LayerSpec:
    """Write one layer's slices, with one slice and one expert in memory at a time."""
    spec = store.layers[layer]
    buffer = allocate_pages(spec.stride_bytes)
    checksums = []
    with (folder / spec.file).open("wb") as out:
        for label in range(int(assigned.max()) + 1):
            members = (assigned == label).nonzero().flatten().tolist()
            use = counts[members] + 1.0  # never all zero
            sums: dict[str, torch.Tensor] = {}
            for expert, weight in zip(members, (use / use.sum()).tolist(), strict=True):
                source.read(layer, expert, host_bytes(buffer))
                for name, tensor in store.tensors(layer, buffer).items():
                    sums[name] = sums.get(name, torch.zeros(1)) + weight * tensor.float()
            for name, tensor in store.tensors(layer, buffer).items():
                tensor.copy_(sums[name])
            checksums.append(write_expert(out, host_bytes(buffer)[: spec.expert_bytes]))
    return replace(spec, experts=len(checksums), checksums=tuple(checksums))
