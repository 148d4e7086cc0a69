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
from specmoe.offload.device import PAGE_BYTES, allocate_pages, host_bytes
from specmoe.offload.page_file import PageFile
from specmoe.offload.page_memory import PageMemory
from specmoe.offload.store import ExpertStore, LayerSpec, round_to_pages

_MEMORY = 1.06  # of a layer, for what is kept of its experts and five under conversion
_ALL = 0.97  # from this share on all is kept
_CHUNK_BYTES = 32 << 10
_NORM_VALUES = 1 << 16
_READ_BYTES = 4 << 20
_FEWEST_READS = 32  # of an expert, so that what is read at once is small beside the layer
_ROUNDING = 2.0**-9  # of bfloat16, relative
_TABLE_ROUNDING = 2.0**-11  # half of float16's last bit in a distance, doubled for its square


def table_path(store: ExpertStore, layer: int) -> Path:
    """File of a MoE layer's E x E table."""
    return _table_of(store.layer_file(layer))


def _table_of(layer_file: Path) -> Path:
    return layer_file.with_name(f"affinity_{layer_file.stem.removeprefix('layer_')}.npy")


class Products:
    """Inner products of all experts of a layer, [E, E] in float64, from what is kept while they are converted.

    The first ``kept_bytes`` (whole pages) of each expert are kept in ``memory``, if that has room for them; the rest is
    read again at the end.
    """

    def __init__(self, spec: LayerSpec, dtype: torch.dtype, kept_bytes: int, memory: PageMemory) -> None:
        self._spec, self._dtype, self._memory = spec, dtype, memory
        self._kept_bytes = kept_bytes
        self._kept: torch.Tensor | None = None  # chunks of all experts in order of arrival, [k, E, chunk]
        self._experts: list[int] = []
        self._norms: dict[int, float] = {}  # squared, of what is kept, where products need them
        self._gram = torch.zeros(spec.experts, spec.experts, dtype=torch.float64)

    def measure(self, expert: int, row: torch.Tensor) -> None:
        """Compute what ``add`` needs of an expert, perhaps in another thread."""
        if self._kept_bytes and self._dtype == torch.bfloat16 and _multiplies_bfloat16():
            self._norms[expert] = _squared_norm(row[: self._kept_bytes].view(self._dtype))

    def add(self, expert: int, row: torch.Tensor) -> None:
        """One more expert, uint8 [stride_bytes], which was measured; it may change afterwards."""
        if not self._experts and not self._memory.fits(self._spec.experts * self._kept_bytes):
            self.forget()
        if self._kept is None and self._kept_bytes:
            self._kept = self._memory.take(self._spec.experts * self._kept_bytes)
        self._experts.append(expert)
        if self._kept is not None:
            number, chunk_bytes = len(self._experts), _chunk_bytes(self._kept_bytes)
            chunks = self._kept.view(-1, self._spec.experts, chunk_bytes)
            chunks[:, number - 1].copy_(row[: self._kept_bytes].view(-1, chunk_bytes))
            if number == self._spec.experts:
                self._multiply(chunks.view(self._dtype))

    def forget(self) -> None:
        """Free the memory; all experts are then read again."""
        if self._kept is not None:
            self._memory.give(self._kept)
        self._kept, self._kept_bytes = None, 0
        self._gram.zero_()

    def save(self, layer_file: Path, file: PageFile) -> None:
        """Save the table of weight distances of the complete layer, whose opened file is ``file``.

        Raises:
            UnsupportedModelError: an expert holds NaN or infinite weights.
        """
        if self._kept_bytes < self._spec.stride_bytes:
            read = self._kept if self._kept is not None else self._memory.take(_reading_bytes(self._spec))
            self._gram += _products_of_file(file, self._spec, self._dtype, self._kept_bytes, read)
            self._kept = read
        if self._kept is not None:
            self._memory.give(self._kept)
            self._kept = None
        self._check_finite(file)
        with _table_of(layer_file).open("wb") as out:
            np.save(out, distances(self._gram).numpy())
            out.flush()
            os.fsync(out.fileno())

    def _multiply(self, chunks: torch.Tensor) -> None:
        """Multiply the experts in ``chunks`` [k, E, c]."""
        norms = torch.tensor([self._norms[e] for e in self._experts], dtype=torch.float64) if self._norms else None
        places = torch.tensor(self._experts)
        self._gram[places[:, None], places] = _products(list(chunks), norms)

    def _check_finite(self, file: PageFile) -> None:
        spec = self._spec
        for expert in (~self._gram.diag().isfinite()).nonzero().flatten().tolist():  # or the square overflowed
            row = allocate_pages(spec.stride_bytes)
            file.read(host_bytes(row), expert * spec.stride_bytes)
            if not bool(row[: spec.expert_bytes].view(self._dtype).isfinite().all()):
                raise UnsupportedModelError(
                    f"expert {expert} of layer {spec.model_layer} has NaN or infinite weights in {self._dtype}: "
                    "load it in a wider dtype, or download the checkpoint again"
                )


def kept_bytes(spec: LayerSpec) -> int:
    """As many bytes of each expert of a layer as fit in its memory beside five experts under conversion."""
    share = max(0.0, _MEMORY - 5 / spec.experts)
    nbytes = spec.stride_bytes if share >= _ALL else int(share * spec.stride_bytes)
    chunk_bytes = _chunk_bytes(nbytes)
    return nbytes // chunk_bytes * chunk_bytes


def _reading_bytes(spec: LayerSpec) -> int:
    """Memory to read a layer again in parts that are small beside it."""
    return spec.experts * min(_READ_BYTES, round_to_pages(spec.stride_bytes // _FEWEST_READS))


def _chunk_bytes(nbytes: int) -> int:
    """Bytes of one expert that are multiplied at once: those of all experts stay in the processor's cache."""
    return _CHUNK_BYTES if nbytes % _CHUNK_BYTES == 0 or nbytes > 32 * _CHUNK_BYTES else PAGE_BYTES


def _products_of_file(
    file: PageFile, spec: LayerSpec, dtype: torch.dtype, start: int, memory: torch.Tensor
) -> torch.Tensor:
    """The products of all experts in a layer file, float64 [E, E], from byte ``start`` of each on; uses ``memory``."""
    width = len(memory) // spec.experts // PAGE_BYTES * PAGE_BYTES
    gram = torch.zeros(spec.experts, spec.experts, dtype=torch.float64)
    for position in range(start, spec.stride_bytes, width):
        rows = memory[: spec.experts * width].view(spec.experts, width)[:, : spec.stride_bytes - position]
        for expert, row in enumerate(rows):
            file.read(host_bytes(row), expert * spec.stride_bytes + position)
        gram += _products(list(rows.view(dtype).split(_CHUNK_BYTES // dtype.itemsize, dim=1)), None)
    return gram


def _products(chunks: list[torch.Tensor], norms: torch.Tensor | None) -> torch.Tensor:
    """The products of E experts, float64 [E, E], from ``chunks`` of their values, [E, c].

    ``norms`` are their squared norms if they are known, float64 [E].
    """
    products = None
    if chunks[0].dtype == torch.bfloat16 and _multiplies_bfloat16():
        if norms is None:
            norms = torch.tensor(
                [sum(map(_squared_norm, parts)) for parts in zip(*chunks, strict=True)], dtype=torch.float64
            )
        products = _narrow_products(chunks, norms)
    return products if products is not None else _wide_products(chunks)


def _wide_products(chunks: list[torch.Tensor]) -> torch.Tensor:
    """``_products`` in float32, summed in float64."""
    products = torch.zeros(len(chunks[0]), len(chunks[0]), dtype=torch.float64)
    for chunk in (chunk.float().contiguous() for chunk in chunks):
        products += chunk @ chunk.t()  # by torch: numpy's own threads wait busily
    return products


def _narrow_products(chunks: list[torch.Tensor], norms: torch.Tensor) -> torch.Tensor | None:
    """``_products`` of bfloat16 values without widening them; None where that could change a table.

    The product of a chunk is rounded to bfloat16, by at most ``_ROUNDING`` of its size.  The sum of these errors is
    below a table's own rounding where experts are nearly orthogonal; ``norms`` have float32's.
    """
    products = torch.zeros(len(norms), len(norms), dtype=torch.float64)
    errors = torch.zeros_like(products)
    for chunk in (chunk.contiguous() for chunk in chunks):
        part = (chunk @ chunk.t()).double()
        products += part
        errors += part.abs() * _ROUNDING
    itself = torch.eye(len(norms), dtype=torch.bool)
    squared = norms[:, None] + norms - 2 * products
    if not bool((itself | (2 * errors <= _TABLE_ROUNDING * squared)).all()):
        return None
    return torch.where(itself, norms, products)


def _squared_norm(row: torch.Tensor) -> float:
    """Of a row [c], in parts that stay in the processor's cache, each summed in float32."""
    parts = (part.float() for part in row.split(_NORM_VALUES))
    return sum(float(torch.dot(part, part)) for part in parts)


def _multiplies_bfloat16() -> bool:
    """Whether the processor has instructions for products of bfloat16."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


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
