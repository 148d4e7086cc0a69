"""A file of whole pages, written and read past the page cache where the file system can: without a copy or a flush."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
from collections.abc import Callable
from pathlib import Path

from specmoe.offload.device import PAGE_BYTES

_DIRECT_REFUSED = {errno.EINVAL, errno.EOPNOTSUPP}
_WRITE_BACK_BYTES = 64 << 20


class PageFile:
    """A file of whole pages, read and written in any order to and from page-aligned memory.

    With O_DIRECT.  If the file system refuses it, on opening or later, the file is buffered from then on, and the disk
    is made to write while the caller prepares the next data; ``direct`` tells which of the two is used.

    Raises:
        OSError: from every method, if the disk is full or the file cannot be read or written.
    """

    def __init__(self, path: Path, flags: int, direct: bool = True) -> None:
        self.direct = direct
        try:
            self._file = os.open(path, flags | (os.O_DIRECT if direct else 0), 0o644)
        except OSError as error:
            if not (direct and error.errno in _DIRECT_REFUSED):
                raise
            self._file, self.direct = os.open(path, flags, 0o644), False
        self._unsynced_bytes = 0

    @classmethod
    def create(cls, path: Path, nbytes: int) -> PageFile:
        """A new file of ``nbytes``."""
        file = cls(path, os.O_CREAT | os.O_TRUNC | os.O_RDWR)
        os.truncate(file._file, nbytes)
        return file

    @classmethod
    def open(cls, path: Path, direct: bool = True) -> PageFile:
        """An existing file, only to be read; buffered if not ``direct``."""
        return cls(path, os.O_RDONLY, direct)

    def write(self, data: memoryview, position: int) -> None:
        """Write whole pages at ``position``, a multiple of the page size."""
        self._transfer(lambda done: os.pwrite(self._file, data[done : done + (1 << 30)], position + done), len(data))
        if not self.direct:
            self._start_write_back(len(data))

    def read(self, out: memoryview, position: int) -> int:
        """Fill whole pages from ``position``, a multiple of the page size; returns the bytes up to the file's end."""
        return self._transfer(
            lambda done: os.preadv(self._file, [out[done : done + (1 << 30)]], position + done), len(out)
        )

    def _transfer(self, some: Callable[[int], int], nbytes: int) -> int:
        """Call ``some`` with the bytes that are done until all are, or there are no more; returns the bytes done."""
        done = 0
        while done < nbytes:
            try:
                count = some(done)
            except OSError as error:
                if not (self.direct and error.errno in _DIRECT_REFUSED):
                    raise
                self._use_page_cache()
                continue
            if not count:
                break
            if self.direct and count % PAGE_BYTES:
                self._use_page_cache()  # the rest begins inside a page, where O_DIRECT cannot go on
            done += count
        return done

    def _use_page_cache(self) -> None:
        fcntl.fcntl(self._file, fcntl.F_SETFL, fcntl.fcntl(self._file, fcntl.F_GETFL) & ~os.O_DIRECT)
        self.direct = False

    def _start_write_back(self, written: int) -> None:
        self._unsynced_bytes += written
        if self._unsynced_bytes > _WRITE_BACK_BYTES:
            os.posix_fadvise(self._file, 0, 0, os.POSIX_FADV_DONTNEED)
            self._unsynced_bytes = 0

    def sync(self) -> None:
        """Force the file to disk."""
        os.fsync(self._file)

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def is_cached(path: Path) -> bool:
    """Whether the page cache holds most of a file, as after a download; False where the kernel does not say.

    Raises:
        OSError: the file cannot be read.
    """
    size = path.stat().st_size
    if not size:
        return False
    pages = (ctypes.c_ubyte * -(-size // PAGE_BYTES))()
    with path.open("rb") as file, mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY) as mapped:
        start = ctypes.c_char.from_buffer(mapped)
        failed = ctypes.CDLL(None).mincore(ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(size), pages)
        del start  # or the mapping could not be closed
    return not failed and bytes(pages).translate(_RESIDENT).count(1) > len(pages) // 2


_RESIDENT = bytes(value & 1 for value in range(256))
