"""Buffers are page-aligned and used again, and what is kept for that stays within the limit."""

from __future__ import annotations

import pytest

from specmoe.offload.device import PAGE_BYTES
from specmoe.offload.page_memory import PageMemory


@pytest.mark.parametrize("nbytes", [1, PAGE_BYTES, PAGE_BYTES + 1])
def test_buffers_are_aligned_and_used_again(nbytes: int) -> None:
    memory = PageMemory(1 << 20)
    first = memory.take(nbytes)
    address = first.data_ptr()
    assert (len(first), address % PAGE_BYTES) == (nbytes, 0)
    memory.give(first)
    del first
    assert memory.take(nbytes).data_ptr() == address


def test_free_buffers_make_room_for_those_of_another_size() -> None:
    memory = PageMemory(4 * PAGE_BYTES)
    held = [memory.take(PAGE_BYTES) for _ in range(4)]
    assert memory.is_full
    for buffer in held:
        memory.give(buffer)
    assert memory.lent_bytes == 0
    assert memory.kept_bytes == 4 * PAGE_BYTES
    large = memory.take(3 * PAGE_BYTES)
    assert memory.kept_bytes == PAGE_BYTES
    memory.give(large)
    assert memory.kept_bytes == 4 * PAGE_BYTES


def test_more_than_the_limit_is_lent_and_not_kept() -> None:
    memory = PageMemory(PAGE_BYTES)
    held = [memory.take(PAGE_BYTES) for _ in range(3)]
    for buffer in held:
        memory.give(buffer)
    assert memory.kept_bytes == PAGE_BYTES
