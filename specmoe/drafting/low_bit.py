"""Low-bit copies of all experts of a store, with which every pick can draft; made once per store and number of bits.

They form a store of their own in its folder: per expert the packed codes and scales of each matrix, which is [out, in]
whatever the family's layout, and biases in float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from specmoe.compute.codes import GROUP, SCALES, groups
from specmoe.drafting import quantize
from specmoe.errors import StoreError
from specmoe.files import folder_appears
from specmoe.offload.device import allocate_pages, host_bytes
from specmoe.offload.sources import DiskSource
from specmoe.offload.store import ExpertStore, LayerSpec, TensorSpec, round_to_pages, write_expert, write_index

BITS = (2, 3, 4, 8)
METHOD = 1
"""Counts changes to how copies are made."""
_ALIGNED = 64


def open_or_build(store: ExpertStore, bits: int, transposed: Sequence[bool]) -> ExpertStore:
    """A store's low-bit copies, built on first use; ``transposed`` says per layer whether matrices are [in, out].

    Raises:
        StoreError: a damaged or unwritable folder, or copies made in another way.
    """
    path = _folder(store, bits)
    facts = {"bits": bits, "group": GROUP, "method": METHOD}
    if not path.exists():
        _build(store, bits, transposed, facts, path)
    try:
        copies = ExpertStore.open(path)
    except StoreError as error:
        raise StoreError(f"low-bit copies are damaged ({error}): delete {path}, it will be rebuilt") from error
    counts = [[spec.experts for spec in one.layers] for one in (copies, store)]
    if copies.source != facts or counts[0] != counts[1]:
        raise StoreError(f"low-bit copies at {path} are of another store or release: delete it, it will be rebuilt")
    return copies


def made(store: ExpertStore) -> list[int]:
    """Bits of the copies that a store has, ascending."""
    return [bits for bits in BITS if _folder(store, bits).exists()]


def planned_bytes(spec: LayerSpec, bits: int, is_transposed: bool) -> int:
    """Device memory of the copies of all experts of a layer, whether or not they have been made."""
    end = 0
    for tensor in spec.tensors:
        if len(tensor.shape) == 1:
            end += _aligned(tensor.shape[0] * torch.float32.itemsize)
            continue
        rows, width = reversed(tensor.shape) if is_transposed else tensor.shape
        end += _aligned(rows * groups(width) * 4 * bits) + _aligned(rows * groups(width) * torch.bfloat16.itemsize)
    return round_to_pages(end) * spec.experts


def copy_of(tensors: dict[str, torch.Tensor], bits: int, is_transposed: bool) -> dict[str, torch.Tensor]:
    """The copy of one expert in host memory, as the kernels take it."""
    return views(dict(_parts(tensors, bits, is_transposed)))


def rounded(tensors: dict[str, torch.Tensor], bits: int, is_transposed: bool) -> dict[str, torch.Tensor]:
    """The weights that an expert's copy stands for, in the layout, dtype and place of the expert's own."""
    found = dict(tensors)
    for name, tensor in tensors.items():
        if tensor.dim() > 1:
            plain = (tensor.t() if is_transposed else tensor).float().cpu()
            wide = quantize.rounded(plain, bits)
            found[name] = (wide.t() if is_transposed else wide).to(tensor).contiguous()
    return found


def _folder(store: ExpertStore, bits: int) -> Path:
    return store.path / f"low_bit_{bits}"


def _build(store: ExpertStore, bits: int, transposed: Sequence[bool], facts: dict[str, int], path: Path) -> None:
    source = DiskSource(store)
    try:
        with folder_appears(path) as partial:
            layers = [
                _quantise_layer(store, source, layer, bits, turned, partial) for layer, turned in enumerate(transposed)
            ]
            write_index(partial, torch.uint8, layers, facts)
    except OSError as error:
        raise StoreError(
            f"cannot write low-bit copies at {path} ({error}): free disk space, or make its folder writable"
        ) from error
    finally:
        source.close()


def _quantise_layer(
    store: ExpertStore, source: DiskSource, layer: int, bits: int, is_transposed: bool, folder: Path
) -> LayerSpec:
    """Write one layer's copies, with one expert in memory at a time."""
    spec = store.layers[layer]
    buffer = allocate_pages(spec.stride_bytes)
    checksums = []
    tensors: tuple[TensorSpec, ...] = ()
    with (folder / spec.file).open("wb") as out:
        for expert in range(spec.experts):
            source.read(layer, expert, host_bytes(buffer))
            source.check(layer, expert, host_bytes(buffer))
            parts = dict(_parts(store.tensors(layer, buffer), bits, is_transposed))
            tensors, nbytes = _layout(parts)
            copy = torch.zeros(nbytes, dtype=torch.uint8)
            for place in tensors:
                data = parts[place.name].flatten()
                copy[place.offset : place.offset + len(data)] = data
            checksums.append(write_expert(out, host_bytes(copy)))
    stride = round_to_pages(nbytes)
    return replace(spec, expert_bytes=nbytes, stride_bytes=stride, tensors=tensors, checksums=tuple(checksums))


def _parts(tensors: dict[str, torch.Tensor], bits: int, is_transposed: bool) -> Iterator[tuple[str, torch.Tensor]]:
    """An expert's tensors as bytes: uint8 [R, n] of codes and of scales, [n] of biases."""
    for name, tensor in tensors.items():
        if tensor.dim() == 1:
            yield name, tensor.float().contiguous().view(torch.uint8)
            continue
        codes, scales = quantize.quantise((tensor.t() if is_transposed else tensor).float(), bits)
        yield name, codes
        yield f"{name}{SCALES}", scales.view(torch.uint8)


def _layout(parts: dict[str, torch.Tensor]) -> tuple[tuple[TensorSpec, ...], int]:
    """Where each part lies, and the bytes of a copy."""
    places, end = [], 0
    for name, part in parts.items():
        places.append(TensorSpec(name, tuple(part.shape), end))
        end += _aligned(part.numel())
    return tuple(places), end


def _aligned(nbytes: int) -> int:
    return -(-nbytes // _ALIGNED) * _ALIGNED


def views(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A copy's bytes, as its store names them, in the dtypes that the kernels take."""
    return {
        name: tensor.view(torch.bfloat16)
        if name.endswith(SCALES)
        else tensor.view(torch.float32)
        if name.endswith("_bias")
        else tensor
        for name, tensor in tensors.items()
    }
