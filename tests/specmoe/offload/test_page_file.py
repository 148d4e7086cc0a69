"""Pages are written and read past the page cache where the file system can, and correctly everywhere."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch

from specmoe.offload.device import PAGE_BYTES, allocate_pages, host_bytes
from specmoe.offload.page_file import PageFile, is_cached

PAGES = 8


def blocks() -> list[torch.Tensor]:
    found = []
    for number in range(PAGES):
        page = allocate_pages(PAGE_BYTES)
        page[:] = number + 1
        found.append(page)
    return found


def write(path: Path) -> PageFile:
    """Write the blocks, last first, and read them again."""
    file = PageFile.create(path, PAGES * PAGE_BYTES)
    for number, block in reversed(list(enumerate(blocks()))):
        file.write(host_bytes(block), number * PAGE_BYTES)
    again = allocate_pages(PAGES * PAGE_BYTES)
    file.read(host_bytes(again), 0)
    assert bytes(host_bytes(again)) == expected()
    file.sync()
    file.close()
    return file


def expected() -> bytes:
    return b"".join(bytes([number + 1]) * PAGE_BYTES for number in range(PAGES))


def test_blocks_in_any_order_make_the_file(tmp_path: Path) -> None:
    write(tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == expected()


@pytest.mark.parametrize("where", ["open", "pwrite", "preadv"])
def test_a_file_system_without_direct_writes_gets_buffered_ones(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = getattr(os, where)
    refused: list[str] = []

    def refusing(*arguments: object) -> object:
        direct = arguments[1] & os.O_DIRECT if where == "open" else not refused  # type: ignore[operator]
        if direct:
            refused.append(where)
            raise OSError(errno.EINVAL, "Invalid argument")
        return original(*arguments)

    monkeypatch.setattr(os, where, refusing)
    writer = write(tmp_path / "x")
    assert refused
    assert not writer.direct
    assert (tmp_path / "x").read_bytes() == expected()


def test_a_write_that_ends_inside_a_page_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = os.pwrite
    writer = PageFile.create(tmp_path / "x", PAGE_BYTES)

    def partly(file: int, data: memoryview, position: int) -> int:
        count = original(file, data, position)
        return 1000 if count == PAGE_BYTES else count

    monkeypatch.setattr(os, "pwrite", partly)
    writer.write(host_bytes(blocks()[2]), 0)
    writer.close()
    assert not writer.direct
    assert (tmp_path / "x").read_bytes() == bytes([3]) * PAGE_BYTES


def test_other_errors_are_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path / "x")


def test_a_file_just_written_through_the_page_cache_is_cached(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(bytes(PAGES * PAGE_BYTES + 1))
    assert is_cached(tmp_path / "x")
    (tmp_path / "empty").touch()
    assert not is_cached(tmp_path / "empty")
    with (tmp_path / "x").open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if not PageFile.open(tmp_path / "x").direct:
        pytest.skip("no disk here")
    assert not is_cached(tmp_path / "x")


@pytest.mark.parametrize("direct", [True, False])
def test_reading_ends_with_the_file(direct: bool, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(bytes([7]) * (PAGE_BYTES + 1))
    file, out = PageFile.open(tmp_path / "x", direct), allocate_pages(4 * PAGE_BYTES)
    assert file.read(host_bytes(out), 0) == PAGE_BYTES + 1
    assert int(out.sum()) == 7 * (PAGE_BYTES + 1)
    file.close()
