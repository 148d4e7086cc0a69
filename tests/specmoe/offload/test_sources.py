"""A disk gives the same bytes with and without O_DIRECT, and its errors name the file."""

from __future__ import annotations

import errno
import fcntl
import os

import pytest
import torch

from specmoe import ExpertStore, StoreError
from specmoe.errors import BufferedReadsWarning
from specmoe.offload.device import allocate_pages
from specmoe.offload.sources import DiskSource


def test_buffered_reads_give_the_same_bytes_where_o_direct_is_refused(
    store: ExpertStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_open = os.open

    def refusing(path: str, flags: int, *rest: object) -> int:
        if flags & os.O_DIRECT and "layer_001" in str(path):  # refuses after one file was opened directly
            raise OSError(22, "Invalid argument")
        return real_open(path, flags, *rest)  # type: ignore[arg-type]

    direct, stride = DiskSource(store), store.slot_bytes
    monkeypatch.setattr(os, "open", refusing)
    buffered = DiskSource(store)
    assert not buffered.direct
    for layer in range(len(store.layers)):
        a, b = allocate_pages(stride), allocate_pages(stride)
        assert direct.read(layer, 3, a.numpy().data) == buffered.read(layer, 3, b.numpy().data) == stride
        assert torch.equal(a, b)
    direct.close()
    buffered.close()


@pytest.mark.parametrize("fault", ["refused", "short"])
def test_direct_reads_that_fail_or_end_inside_a_page_are_buffered_from_then_on(
    fault: str, store: ExpertStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, expected, out = os.preadv, allocate_pages(store.slot_bytes), allocate_pages(store.slot_bytes)
    DiskSource(store).read(1, 3, expected.numpy().data)
    source = DiskSource(store)
    if not source.direct:
        pytest.skip("no O_DIRECT here")

    def faulty(file: int, buffers: list[memoryview], offset: int) -> int:
        if fcntl.fcntl(file, fcntl.F_GETFL) & os.O_DIRECT:
            if fault == "refused":
                raise OSError(errno.EINVAL, "Invalid argument")
            return real(file, buffers, offset) - 1000
        return real(file, buffers, offset)

    monkeypatch.setattr(os, "preadv", faulty)
    with pytest.warns(BufferedReadsWarning, match="buffered from now on"):
        assert source.read(1, 3, out.numpy().data) == store.slot_bytes
    assert torch.equal(out, expected)
    assert not source.direct
    source.close()


def test_an_error_of_the_disk_names_the_file(store: ExpertStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    source = DiskSource(store)
    monkeypatch.setattr(os, "preadv", broken)
    with pytest.raises(StoreError, match=r"layer_001\.bin cannot be read \(Input/output error\)"):
        source.read(1, 0, allocate_pages(store.slot_bytes).numpy().data)
    source.close()
