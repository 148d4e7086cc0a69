"""Reads a file once from front to back, a few blocks ahead of its user, and hashes it."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import xxhash

from specmoe.errors import UnsupportedModelError
from specmoe.offload.device import host_bytes
from specmoe.offload.page_file import PageFile, is_cached
from specmoe.offload.page_memory import PageMemory

_BLOCKS = 4  # one in use, the others ahead
_READERS = 2  # so that the disk has the next request when one ends


class Sequential:
    """A file in blocks of ``block_bytes`` (whole pages), read by threads of its own; use as a context manager.

    A file that the page cache holds is taken from there; another is read past it, which costs the processor little.

    Raises:
        UnsupportedModelError: it cannot be read, or became shorter.
    """

    def __init__(self, path: Path, block_bytes: int, memory: PageMemory) -> None:
        self._path, self._block_bytes, self._memory = path, block_bytes, memory
        self._hash = xxhash.xxh3_64()
        self.position = 0
        try:
            self._status = path.stat()
            self._file = PageFile.open(path, direct=not is_cached(path))
        except OSError as error:
            raise unreadable(path, error) from error
        self._readers = ThreadPoolExecutor(_READERS)
        self._starts = iter(range(0, self._status.st_size, block_bytes))
        self._free = [memory.take(block_bytes) for _ in range(_BLOCKS)]
        self._ahead: deque[tuple[torch.Tensor, Future[torch.Tensor]]] = deque()
        self._used: torch.Tensor | None = None
        self._block = torch.empty(0, dtype=torch.uint8)
        self._end = 0  # of the block

    def __enter__(self) -> Sequential:
        return self

    def __exit__(self, *_: object) -> None:
        self._readers.shutdown(cancel_futures=True)
        self._file.close()
        for buffer in (*self._free, *(buffer for buffer, _ in self._ahead), self._used):
            if buffer is not None:
                self._memory.give(buffer)

    def read(self, position: int, buffer: torch.Tensor) -> torch.Tensor:
        """Fill a uint8 buffer from ``position``; what lies before is hashed, what was passed is read again."""
        if position < self.position:
            return read_part(self._path, position, buffer)
        self._skip_to(position)
        done = 0
        for part in self._parts(len(buffer)):
            buffer[done : done + len(part)] = part
            done += len(part)
        return buffer

    def finish(self) -> dict[str, Any]:
        """Hash the rest; returns size, modification time and checksum of the file."""
        self._skip_to(self._status.st_size)
        found = {"bytes": self._status.st_size, "mtime_ns": self._status.st_mtime_ns}
        return {**found, "xxh3": self._hash.hexdigest()}

    def _skip_to(self, position: int) -> None:
        for _ in self._parts(position - self.position):
            pass

    def _parts(self, nbytes: int) -> Iterator[torch.Tensor]:
        """The next ``nbytes``, as views of one block after the other that are valid until the next is asked for."""
        while nbytes:
            if self.position == self._end:
                self._next_block()
            start = self.position - (self._end - len(self._block))
            part = self._block[start : start + nbytes]
            self.position += len(part)
            nbytes -= len(part)
            yield part

    def _next_block(self) -> None:
        """Give the used block back and take the next; the threads go on reading."""
        if self._used is not None:
            self._free.append(self._used)
        while self._free and (start := next(self._starts, None)) is not None:
            buffer = self._free.pop()
            before = self._ahead[-1][1] if self._ahead else None
            self._ahead.append((buffer, self._readers.submit(self._load, start, buffer, before)))
        if not self._ahead:
            raise changed(self._path)
        self._used, block = self._ahead.popleft()
        self._block = block.result()
        self._end += len(self._block)

    def _load(self, start: int, buffer: torch.Tensor, before: Future[torch.Tensor] | None) -> torch.Tensor:
        """Read a block and hash it after the one ``before``; the last one of a file may be shorter."""
        view = host_bytes(buffer)
        expected = min(len(view), self._status.st_size - start)
        try:
            count = self._file.read(view, start)
        except OSError as error:
            raise unreadable(self._path, error) from error
        if count < expected:
            raise changed(self._path)
        if before is not None:
            before.result()
        self._hash.update(view[:expected])
        return buffer[:expected]


def read_part(file: Path, position: int, buffer: torch.Tensor) -> torch.Tensor:
    """Fill a uint8 buffer from ``position``.

    Raises:
        UnsupportedModelError: the file cannot be read, or became shorter.
    """
    view, done = host_bytes(buffer), 0
    try:
        with file.open("rb", buffering=0) as opened:
            while done < len(view):
                count = os.preadv(opened.fileno(), [view[done : done + (1 << 30)]], position + done)
                if count == 0:
                    raise changed(file)
                done += count
    except OSError as error:
        raise unreadable(file, error) from error
    return buffer


def check_unchanged(file: Path, identity: dict[str, Any]) -> None:
    """Check that a file has the size and modification time that it had when it was read.

    Raises:
        UnsupportedModelError: it has not.
    """
    status = file.stat()
    if (status.st_size, status.st_mtime_ns) != (identity["bytes"], identity["mtime_ns"]):
        raise changed(file)


def changed(file: Path) -> UnsupportedModelError:
    return UnsupportedModelError(f"{file} changed while it was read: wait until its download is complete, then retry")


def unreadable(file: Path, error: OSError) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{file} cannot be read ({error.strerror}): check its disk and permissions, or download it again"
    )
