"""Writes the file of one MoE layer: converts its experts one at a time, in any order, each to its place."""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import torch
from transformers import PreTrainedModel

from specmoe.drafting import affinity
from specmoe.model.load_plan import Group, is_per_expert
from specmoe.model.plan_checks import DTYPES
from specmoe.model.stream import Piece, data_starts
from specmoe.offload.device import host_bytes
from specmoe.offload.page_file import PageFile
from specmoe.offload.page_memory import PageMemory
from specmoe.offload.store import LayerSpec, TensorSpec, checksum

Owner = tuple[str, int]
"""An experts module and the number of the expert."""
Part = tuple[int, str]
"""Which group of the module, and which of its source patterns."""
ExpertPiece = Piece[Owner, Part]


class LayerFile:
    """The file of one layer as ``spec`` plans it, and its affinity table; ``memory`` lends what both need."""

    def __init__(
        self,
        folder: Path,
        model: PreTrainedModel,
        spec: LayerSpec,
        groups: list[Group],
        dtype: torch.dtype,
        memory: PageMemory,
    ) -> None:
        self._model, self._spec, self._groups, self._dtype, self._memory = model, spec, groups, dtype, memory
        self.path = folder / spec.file
        self.experts = spec.experts
        self._file: PageFile | None = None
        self._checksums = list(spec.checksums)
        self._unconverted = self.experts
        self._products = affinity.Products(spec, dtype, affinity.kept_bytes(spec), memory)

    @property
    def complete(self) -> bool:
        """Whether every expert was converted."""
        return not self._unconverted

    @property
    def nbytes(self) -> int:
        """Bytes of all experts in the store's dtype."""
        return self.experts * self._spec.expert_bytes

    def pieces(self, starts: dict[Path, dict[str, int]]) -> Iterator[ExpertPiece]:
        """What the experts are made of; ``starts`` keeps the tensors' offsets by file."""
        for number, group in enumerate(self._groups):
            for pattern, many in group.sources.items():
                for expert in range(self.experts):
                    stored = many[expert if is_per_expert(pattern) else 0]
                    if stored.file not in starts:
                        starts[stored.file] = data_starts(stored.file)
                    start, dtype, shape = starts[stored.file][stored.key], DTYPES[stored.dtype], stored.shape
                    if not is_per_expert(pattern) and shape:  # holds all experts
                        shape = (shape[0] // self.experts, *shape[1:])
                        start += expert * math.prod(shape) * dtype.itemsize
                    yield Piece((self._spec.module, expert), (number, pattern), stored.file, start, shape, dtype)

    def convert(self, expert: int, parts: dict[Part, torch.Tensor]) -> torch.Tensor:
        """One expert as the store holds it: uint8 [stride], lent by the memory, for ``write`` and ``multiply``.

        Raises:
            OSError: the file cannot be made.
        """
        if self._file is None:
            self._file = PageFile.create(self.path, self.experts * self._spec.stride_bytes)
        data = self._memory.take(self._spec.stride_bytes)
        views = _views(self._spec.tensors, self._dtype, data)
        for number, group in enumerate(self._groups):
            joined = group.joined
            if joined is not None:  # as transformers' conversion does, without the copies between
                _join([parts[number, pattern] for pattern in joined], views[_parameter(group.target)])
                continue
            tensors = {pattern: [parts[number, pattern]] for pattern in group.sources}
            for target, tensor in group.convert(self._model, tensors).items():
                views[_parameter(target)].copy_(tensor[0])
        data[self._spec.expert_bytes :] = 0
        self._products.measure(expert, data)
        self._unconverted -= 1
        return data

    def write(self, expert: int, data: torch.Tensor) -> None:
        """Write a converted expert to its place.

        Raises:
            OSError: the disk is full or not writable.
        """
        if self._file is None:
            raise RuntimeError(f"{self.path}: convert an expert before it is written")
        self._checksums[expert] = checksum(host_bytes(data)[: self._spec.expert_bytes])
        self._file.write(host_bytes(data), expert * len(data))

    def multiply(self, expert: int, data: torch.Tensor) -> None:
        """Multiply a converted expert with those before it."""
        self._products.add(expert, data)

    def forget(self) -> None:
        """Free the memory of the experts so far; they are read again for the table."""
        self._products.forget()

    def finish(self, writing: list[Future[None]]) -> None:
        """Write the affinity table of the complete layer and force its file to disk, when ``writing`` is done.

        Raises:
            OSError: it could not be written.
            UnsupportedModelError: an expert holds NaN or infinite weights.
        """
        for written in writing:
            written.result()
        if self._file is None:
            raise RuntimeError(f"{self.path} has no expert: write all before finish")
        self._products.save(self.path, self._file)
        self._file.sync()
        self.close()

    def describe(self) -> LayerSpec:
        """The complete layer."""
        return replace(self._spec, checksums=tuple(self._checksums))

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def _parameter(target: str) -> str:
    """The name within the experts module, as transformers' modules have it."""
    return target.rpartition(".")[2]


def _join(parts: list[torch.Tensor], out: torch.Tensor) -> None:
    """Fill ``out`` with the values of ``parts``, one after another."""
    flat, end = out.view(-1), 0
    for part in parts:
        flat[end : end + part.numel()].copy_(part.view(-1))
        end += part.numel()
    if end != len(flat):
        raise RuntimeError(f"an expert's tensors have {end} values, its parameter has {len(flat)}")


def _views(specs: tuple[TensorSpec, ...], dtype: torch.dtype, data: torch.Tensor) -> dict[str, torch.Tensor]:
    """The tensors of an expert as views of its bytes."""
    return {
        spec.name: data[spec.offset : spec.offset + math.prod(spec.shape) * dtype.itemsize].view(dtype).view(spec.shape)
        for spec in specs
    }
