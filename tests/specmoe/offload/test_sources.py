"""Both slow tiers give a device the same bytes, with or without O_DIRECT and host access to its slots."""

from __future__ import annotations

import pytest
import torch

from specmoe import ExpertStore
from specmoe.offload.device import CpuDevice, allocate_pages
from specmoe.offload.link import Link
from specmoe.offload.sources import DiskSource, HostSource


def test_buffered_reads_give_the_same_bytes_where_o_direct_is_refused(
    store: ExpertStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

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


class FakeAccelerator(CpuDevice):
    """A device whose slots the host cannot write: only ``upload`` fills them, as on CUDA."""

    def __init__(self) -> None:
        self.uploads = 0

    def host_buffer(self, slot: torch.Tensor) -> memoryview | None:
        return None

    def upload(self, source: torch.Tensor, slot: torch.Tensor) -> None:
        self.uploads += 1
        slot.copy_(source)


@pytest.mark.parametrize("tier", ["disk", "host"])
def test_a_device_without_host_access_is_filled_through_staging(store: ExpertStore, tier: str) -> None:
    device = FakeAccelerator()
    source = DiskSource(store) if tier == "disk" else HostSource(store, device)
    link = Link(source, store, device)
    slot, expected = device.allocate(store.slot_bytes), allocate_pages(store.slot_bytes)
    link.wait(link.submit(2, 5, slot))
    DiskSource(store).read(2, 5, expected.numpy().data)
    link.close()
    assert torch.equal(slot, expected)
    assert device.uploads == 1
    assert link.stats.moved_bytes == store.slot_bytes
    assert link.stats.transfers == 1
