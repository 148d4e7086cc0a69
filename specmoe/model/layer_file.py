"""Writes the file of one MoE layer: converts its experts one at a time, in any order, each to its place."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import PreTrainedModel

from specmoe.model.load_plan import Group, is_per_expert
from specmoe.model.plan_checks import DTYPES
from specmoe.model.stream import Piece, data_starts
from specmoe.offload.device import host_bytes
from specmoe.offload.store import LayerSpec, TensorSpec, checksum, round_to_pages

Owner = tuple[str, int]
"""An experts module and the number of the expert."""
Part = tuple[int, str]
"""Which group of the module, and which of its source patterns."""
ExpertPiece = Piece[Owner, Part]

_WRITE_BACK_BYTES = 64 << 20


class Scratch:
    """Memory for two experts, in turns: one is written while the next is converted."""

    def __init__(self) -> None:
        self._turn = 0
        self._buffers: dict[tuple[int, int], torch.Tensor] = {}

    def take(self, nbytes: int) -> torch.Tensor:
        """A uint8 tensor [nbytes] of any content, which the next but one call hands out again."""
        self._turn = 1 - self._turn
        key = self._turn, nbytes
        if key not in self._buffers:
            self._buffers[key] = torch.zeros(nbytes, dtype=torch.uint8)
        return self._buffers[key]


class LayerFile:
    """The file of the experts of ``module``; ``scratch`` lends memory for converted experts."""

    def __init__(
        self,
        folder: Path,
        model: PreTrainedModel,
        module: str,
        groups: list[Group],
        dtype: torch.dtype,
        scratch: Scratch,
    ) -> None:
        self._model, self.module, self._groups, self._dtype, self._scratch = model, module, groups, dtype, scratch
        self.experts = int(model.get_submodule(module).num_experts)
        self._number = next(int(part) for part in module.split(".") if part.isdigit())
        encoder = "encoder_" if "encoder" in module.split(".") else ""
        self.path = folder / f"layer_{encoder}{self._number:03d}.bin"
        self._handle = -1
        self._checksums = [""] * self.experts
        self._unconverted, self._unsynced_bytes = self.experts, 0
        self._specs: tuple[TensorSpec, ...] = ()
        self._size = 0

    @property
    def complete(self) -> bool:
        """Whether every expert was converted."""
        return not self._unconverted

    @property
    def nbytes(self) -> int:
        """Bytes of all experts in the store's dtype."""
        parameters = list(self._model.get_submodule(self.module).parameters())
        values: int = sum(math.prod(p.shape) for p in parameters)
        return values * self._dtype.itemsize

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
                    yield Piece((self.module, expert), (number, pattern), stored.file, start, shape, dtype)

    def convert(self, parts: dict[Part, torch.Tensor]) -> torch.Tensor:
        """One expert as the store holds it: uint8 [stride], in memory that is used again after the next conversion."""
        tensors = self._convert(parts)
        if not self._specs:
            self._specs, self._size = _layout({name: tuple(t.shape) for name, t in tensors.items()}, self._dtype)
        data = self._scratch.take(round_to_pages(self._size))
        for name, view in _views(self._specs, self._dtype, data).items():
            view.copy_(tensors[name])
        data[self._size :] = 0
        self._unconverted -= 1
        return data

    def write(self, expert: int, data: torch.Tensor) -> None:
        """Write a converted expert to its place.

        Raises:
            OSError: the disk is full or not writable.
        """
        if self._handle < 0:
            self._handle = os.open(self.path, os.O_CREAT | os.O_TRUNC | os.O_RDWR, 0o644)
        self._checksums[expert] = checksum(host_bytes(data)[: self._size])
        _write_at(self._handle, host_bytes(data), expert * len(data))
        self._unsynced_bytes += len(data)
        if self._unsynced_bytes > _WRITE_BACK_BYTES:  # the disk writes while the next experts are read
            os.posix_fadvise(self._handle, 0, 0, os.POSIX_FADV_DONTNEED)
            self._unsynced_bytes = 0

    def describe(self) -> LayerSpec:
        """The complete layer."""
        stride = round_to_pages(self._size)
        return LayerSpec(
            self._number,
            self.module,
            self.experts,
            self._size,
            stride,
            self.path.name,
            self._specs,
            tuple(self._checksums),
        )

    def sync(self) -> None:
        """Force the file to disk."""
        os.fsync(self._handle)

    def close(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def _convert(self, parts: dict[Part, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The expert's parameters by name, as transformers' experts modules hold them."""
        found: dict[str, torch.Tensor] = {}
        for number, group in enumerate(self._groups):
            tensors = {pattern: [parts[number, pattern]] for pattern in group.sources}
            for target, tensor in group.convert(self._model, tensors).items():
                found[target.rpartition(".")[2]] = tensor[0]
        return {name: found[name] for name in sorted(found, reverse=True)}


def _write_at(handle: int, data: memoryview, position: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(handle, data[done : done + (1 << 30)], position + done)


def _layout(shapes: dict[str, tuple[int, ...]], dtype: torch.dtype) -> tuple[tuple[TensorSpec, ...], int]:
    """Place tensors one after another, each at a multiple of 64 bytes; returns their places and all bytes."""
    specs: list[TensorSpec] = []
    end = 0
    for name, shape in shapes.items():
        start = end + -end % 64
        specs.append(TensorSpec(name, shape, start))
        end = start + math.prod(shape) * dtype.itemsize
    return tuple(specs), end


def _views(specs: tuple[TensorSpec, ...], dtype: torch.dtype, data: torch.Tensor) -> dict[str, torch.Tensor]:
    """The tensors of an expert as views of its bytes."""
    return {
        spec.name: data[spec.offset : spec.offset + math.prod(spec.shape) * dtype.itemsize].view(dtype).view(spec.shape)
        for spec in specs
    }
