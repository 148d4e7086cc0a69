"""Reads safetensors files once, from front to back: every byte is hashed, and what experts need becomes tensors.

An expert is handed on as soon as all its parts were read. Parts of experts that are not complete yet wait in memory, up
to a limit; in a layout where more would have to wait, the parts of the experts beyond it are read again afterwards.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from specmoe.model.sequential import Sequential, check_unchanged, read_part
from specmoe.offload.device import PAGE_BYTES
from specmoe.offload.page_memory import PageMemory

_BLOCK_BYTES = 4 << 20
_FEWEST_BLOCKS = 150  # of the memory that may be used

Owner = TypeVar("Owner")
Part = TypeVar("Part")


@dataclass(frozen=True)
class Piece(Generic[Owner, Part]):
    """Bytes ``start`` to ``start + nbytes`` of ``file``: the tensor ``part`` of the expert ``owner``."""

    owner: Owner
    part: Part
    file: Path
    start: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def tensor(self, buffer: torch.Tensor) -> torch.Tensor:
        """The piece as a view of its bytes."""
        return buffer.view(self.dtype).view(self.shape)


def data_starts(file: Path) -> dict[str, int]:
    """The offset in bytes of every tensor of a safetensors file that was opened before, so its header is valid."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header: dict[str, Any] = json.loads(opened.read(length))
    return {key: 8 + length + entry["data_offsets"][0] for key, entry in header.items() if key != "__metadata__"}


class ExpertStream(Generic[Owner, Part]):
    """Iterates over (owner, its tensors by part), which are valid until the next step.

    Args:
        files: every file to hash, in the order of reading.
        pieces: what to hand on.
        waiting_bytes: most bytes of parts that wait for the rest of their expert.
        memory: lends the memory of the parts.

    ``identity`` holds size, modification time and xxh3-64 of each file when the iteration has ended;
    ``waiting_bytes`` is what waits now.

    Raises:
        UnsupportedModelError: a file cannot be read, or changed while it was read.
    """

    def __init__(
        self, files: list[Path], pieces: Iterable[Piece[Owner, Part]], waiting_bytes: int, memory: PageMemory
    ) -> None:
        self._files, self._most_waiting_bytes, self._memory = files, waiting_bytes, memory
        self._by_file: dict[Path, list[Piece[Owner, Part]]] = {file: [] for file in files}
        self._missing: dict[Owner, int] = {}
        for piece in pieces:
            self._by_file[piece.file].append(piece)
            self._missing[piece.owner] = self._missing.get(piece.owner, 0) + 1
        self._waiting: dict[Owner, dict[Part, tuple[Piece[Owner, Part], torch.Tensor]]] = {}
        self.waiting_bytes = 0
        self._postponed: dict[Owner, list[Piece[Owner, Part]]] = {}
        self.identity: dict[Path, dict[str, Any]] = {}

    def __iter__(self) -> Iterator[tuple[Owner, dict[Part, torch.Tensor]]]:
        for file in self._files:
            with self._open(file) as opened:
                for piece in sorted(self._by_file[file], key=lambda p: p.start):
                    yield from self._take(piece, opened)
                self.identity[file] = opened.finish()
        for owner, pieces in self._postponed.items():
            parts = {}
            for piece in pieces:
                buffer = read_part(piece.file, piece.start, self._memory.take(piece.nbytes))
                parts[piece.part] = piece, buffer
            yield owner, {part: piece.tensor(buffer) for part, (piece, buffer) in parts.items()}
            self._release(parts)
        for file in self._files:
            check_unchanged(file, self.identity[file])

    def _open(self, file: Path) -> Sequential:
        block_bytes = min(_BLOCK_BYTES, self._memory.most_bytes // _FEWEST_BLOCKS // PAGE_BYTES * PAGE_BYTES)
        return Sequential(file, max(block_bytes, PAGE_BYTES), self._memory)

    def _take(self, piece: Piece[Owner, Part], opened: Sequential) -> Iterator[tuple[Owner, dict[Part, torch.Tensor]]]:
        """Read a piece; yields its expert if that is complete."""
        owner = piece.owner
        parts = self._waiting.setdefault(owner, {})
        complete = len(parts) + 1 == self._missing[owner]
        if owner in self._postponed or (not complete and self.waiting_bytes + piece.nbytes > self._most_waiting_bytes):
            self._postponed.setdefault(owner, []).extend([*(p for p, _ in parts.values()), piece])
            self.waiting_bytes -= sum(p.nbytes for p, _ in parts.values())
            self._release(self._waiting.pop(owner))
            return
        parts[piece.part] = piece, opened.read(piece.start, self._memory.take(piece.nbytes))
        self.waiting_bytes += piece.nbytes
        if complete:
            yield owner, {part: held.tensor(buffer) for part, (held, buffer) in parts.items()}
            self.waiting_bytes -= sum(p.nbytes for p, _ in parts.values())
            self._release(self._waiting.pop(owner))

    def _release(self, parts: dict[Part, tuple[Piece[Owner, Part], torch.Tensor]]) -> None:
        for _, buffer in parts.values():
            self._memory.give(buffer)
