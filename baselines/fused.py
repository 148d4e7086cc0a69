"""The experts of a store as transformers' fused tensors [E, ...], mapped from its files, layer by layer.

transformers computes with one dtype only: systems on it widen experts that are stored in a narrower one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from specmoe.offload.store import ExpertStore, LayerSpec


def layers(store: ExpertStore) -> Iterator[tuple[LayerSpec, dict[str, torch.Tensor]]]:
    """Each MoE layer with its tensors by name (``gate_up_proj`` [E, 2I, H], ``down_proj`` [E, H, I], ...).

    They are views of a private mapping of the layer's file: bytes are read when they are first accessed.
    """
    for layer, spec in enumerate(store.layers):
        nbytes = spec.experts * spec.stride_bytes
        raw = torch.from_file(str(store.layer_file(layer)), shared=False, size=nbytes, dtype=torch.uint8)
        yield spec, views(spec, raw, store.dtype)


def views(spec: LayerSpec, raw: torch.Tensor, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """A layer's bytes (uint8 [E * stride_bytes]) as its fused tensors, without a copy."""
    rows = raw[: spec.experts * spec.stride_bytes].view(spec.experts, spec.stride_bytes)
    fused = {}
    for tensor in spec.tensors:
        nbytes = dtype.itemsize * torch.Size(tensor.shape).numel()
        fused[tensor.name] = rows[:, tensor.offset : tensor.offset + nbytes].view(dtype).unflatten(1, tensor.shape)
    return fused


def widened(spec: LayerSpec, buffer: torch.Tensor, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Fused tensors of a layer in ``dtype``, one after another in ``buffer`` (uint8), not filled yet."""
    start, found = 0, {}
    for tensor in spec.tensors:
        shape = (spec.experts, *tensor.shape)
        nbytes = dtype.itemsize * math.prod(shape)
        found[tensor.name] = buffer[start : start + nbytes].view(dtype).view(shape)
        start += nbytes
    return found


def layer_bytes(store: ExpertStore) -> int:
    """Bytes of the largest MoE layer, padding included."""
    return max(spec.experts * spec.stride_bytes for spec in store.layers)


def computed_bytes(nbytes: int, store: ExpertStore, dtype: torch.dtype) -> int:
    """What ``nbytes`` of a store's experts take in ``dtype``."""
    return nbytes // store.dtype.itemsize * dtype.itemsize
