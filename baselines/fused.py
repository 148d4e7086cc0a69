"""The experts of a store as transformers' fused tensors [E, ...], mapped from its files, layer by layer."""

from __future__ import annotations

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


def layer_bytes(store: ExpertStore) -> int:
    """Bytes of the largest MoE layer, padding included."""
    return max(spec.experts * spec.stride_bytes for spec in store.layers)
