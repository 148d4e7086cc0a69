"""Reads safetensors files once, from front to back: every byte is hashed, and what experts need becomes tensors.

An expert is handed on as soon as all its parts were read. Parts of experts that are not complete yet wait in memory, up
to a limit; in a layout where more would have to wait, the parts of the experts beyond it are read again afterwards.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
import xxhash

from specmoe.errors import UnsupportedModelError
from specmoe.offload.device import host_bytes

_BLOCK_BYTES = 1 << 20
_READ_AHEAD_BYTES = 32 << 20

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

    ``identity`` holds size, modification time and xxh3-64 of each file when the iteration has ended;
    ``waiting_bytes`` is what waits now.

    Raises:
        UnsupportedModelError: a file cannot be read, or changed while it was read.
    """

    def __init__(self, files: list[Path], pieces: Iterable[Piece[Owner, Part]], waiting_bytes: int) -> None:
        self._files, self._most_waiting_bytes = files, waiting_bytes
        self._by_file: dict[Path, list[Piece[Owner, Part]]] = {file: [] for file in files}
        self._missing: dict[Owner, int] = {}
        for piece in pieces:
            self._by_file[piece.file].append(piece)
            self._missing[piece.owner] = self._missing.get(piece.owner, 0) + 1
        self._waiting: dict[Owner, dict[Part, tuple[Piece[Owner, Part], torch.Tensor]]] = {}
        self.waiting_bytes = 0
        self._postponed: dict[Owner, list[Piece[Owner, Part]]] = {}
        self._buffers = _Buffers()
        self.identity: dict[Path, dict[str, Any]] = {}

    def __iter__(self) -> Iterator[tuple[Owner, dict[Part, torch.Tensor]]]:
        for file in self._files:
            with _Sequential(file) as opened:
                for piece in sorted(self._by_file[file], key=lambda p: p.start):
                    yield from self._take(piece, opened)
                self.identity[file] = opened.finish()
        for owner, pieces in self._postponed.items():
            parts = {}
            for piece in pieces:
                with _Sequential(piece.file) as opened:
                    parts[piece.part] = piece, opened.read_again(piece.start, self._buffers.take(piece.nbytes))
            yield owner, {part: piece.tensor(buffer) for part, (piece, buffer) in parts.items()}
            self._release(parts)
        for file in self._files:
            _check_unchanged(file, self.identity[file])

    def _take(self, piece: Piece[Owner, Part], opened: _Sequential) -> Iterator[tuple[Owner, dict[Part, torch.Tensor]]]:
        """Read a piece; yields its expert if that is complete."""
        owner = piece.owner
        parts = self._waiting.setdefault(owner, {})
        complete = len(parts) + 1 == self._missing[owner]
        if owner in self._postponed or (not complete and self.waiting_bytes + piece.nbytes > self._most_waiting_bytes):
            self._postponed.setdefault(owner, []).extend([*(p for p, _ in parts.values()), piece])
            self.waiting_bytes -= sum(p.nbytes for p, _ in parts.values())
            self._release(self._waiting.pop(owner))
            return
        parts[piece.part] = piece, opened.read(piece.start, self._buffers.take(piece.nbytes))
        self.waiting_bytes += piece.nbytes
        if complete:
            yield owner, {part: held.tensor(buffer) for part, (held, buffer) in parts.items()}
            self.waiting_bytes -= sum(p.nbytes for p, _ in parts.values())
            self._release(self._waiting.pop(owner))

    def _release(self, parts: dict[Part, tuple[Piece[Owner, Part], torch.Tensor]]) -> None:
        for _, buffer in parts.values():
            self._buffers.give(buffer)


class _Buffers:
    """Memory that is used again: fresh memory costs a page fault for every 4 KiB."""

    def __init__(self) -> None:
        self._free: dict[int, list[torch.Tensor]] = {}

    def take(self, nbytes: int) -> torch.Tensor:
        """A uint8 tensor [nbytes] of any content."""
        free = self._free.get(nbytes)
        if free:
            return free.pop()
        self._free.clear()  # of other sizes
        return torch.empty(nbytes, dtype=torch.uint8)

    def give(self, buffer: torch.Tensor) -> None:
        self._free.setdefault(len(buffer), []).append(buffer)


class _Sequential:
    """A file that is read front to back and hashed, with the kernel reading ahead.

    Raises:
        UnsupportedModelError: it cannot be read.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._hash = xxhash.xxh3_64()
        self.position = self._asked = 0
        self._block = bytearray()
        try:
            self._handle = os.open(file, os.O_RDONLY)
        except OSError as error:
            raise _unreadable(file, error) from error
        self._status = os.fstat(self._handle)
        os.posix_fadvise(self._handle, 0, 0, os.POSIX_FADV_SEQUENTIAL)

    def __enter__(self) -> _Sequential:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._handle)

    def read(self, position: int, buffer: torch.Tensor) -> torch.Tensor:
        """Fill a uint8 buffer from ``position``; bytes that were not read before are hashed."""
        if position < self.position:
            self._fill(position, host_bytes(buffer))
        else:
            self.skip_to(position)
            self._next(host_bytes(buffer))
        return buffer

    def skip_to(self, position: int) -> None:
        """Hash everything up to ``position``."""
        while self.position < position:
            if not self._block:
                self._block = bytearray(_BLOCK_BYTES)
            self._next(memoryview(self._block)[: position - self.position])

    def read_again(self, position: int, buffer: torch.Tensor) -> torch.Tensor:
        """Fill a uint8 buffer from ``position`` without hashing."""
        self._fill(position, host_bytes(buffer))
        return buffer

    def finish(self) -> dict[str, Any]:
        """Hash the rest; returns size, modification time and checksum of the file."""
        self.skip_to(self._status.st_size)
        found = {"bytes": self._status.st_size, "mtime_ns": self._status.st_mtime_ns}
        return {**found, "xxh3": self._hash.hexdigest()}

    def _next(self, view: memoryview) -> None:
        """Fill and hash in blocks that stay in the processor's cache from one to the other."""
        for start in range(0, len(view), _BLOCK_BYTES):
            block = view[start : start + _BLOCK_BYTES]
            while self._asked < min(self.position + len(block) + _READ_AHEAD_BYTES, self._status.st_size):
                os.posix_fadvise(self._handle, self._asked, _READ_AHEAD_BYTES, os.POSIX_FADV_WILLNEED)
                self._asked += _READ_AHEAD_BYTES
            self._fill(self.position, block)
            self._hash.update(block)
            self.position += len(block)

    def _fill(self, position: int, view: memoryview) -> None:
        done = 0
        while done < len(view):
            try:
                count = os.preadv(self._handle, [view[done : done + (1 << 30)]], position + done)
            except OSError as error:
                raise _unreadable(self._file, error) from error
            if count == 0:
                raise _changed(self._file)
            done += count


def _check_unchanged(file: Path, identity: dict[str, Any]) -> None:
    status = file.stat()
    if (status.st_size, status.st_mtime_ns) != (identity["bytes"], identity["mtime_ns"]):
        raise _changed(file)


def _changed(file: Path) -> UnsupportedModelError:
    return UnsupportedModelError(f"{file} changed while it was read: wait until its download is complete, then retry")


def _unreadable(file: Path, error: OSError) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{file} cannot be read ({error.strerror}): check its disk and permissions, or download it again"
    )
