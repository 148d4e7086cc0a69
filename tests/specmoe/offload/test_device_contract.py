"""Every device keeps the contract of ``Device``: the CPU, a fake one that fails races, and CUDA where it is there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from specmoe import ExpertStore, SpecMoE
from specmoe.errors import HostMemoryError
from specmoe.offload.device import PAGE_BYTES, CpuDevice, CudaDevice, Device, allocate_pages, host_bytes
from specmoe.offload.link import Link
from specmoe.offload.sources import DiskSource, HostSource, Source
from tests.conftest import prompts, reference
from tests.specmoe.offload.fake_device import FakeCopy, FakeDevice, Misuse

Launch = Callable[[torch.Tensor], Callable[[], torch.Tensor]]
CYCLES = 20_000_000
"""About 10 ms of a GPU."""


@dataclass
class Rig:
    """A device, and how to queue a kernel that reads a slot late; the result of a launch is what it read."""

    device: Device
    launch: Launch


def _launch_on_cpu(slot: torch.Tensor) -> Callable[[], torch.Tensor]:
    read = slot.clone()
    return lambda: read


def _launch_on_cuda(slot: torch.Tensor) -> Callable[[], torch.Tensor]:
    torch.cuda._sleep(CYCLES)
    read = slot.clone()
    return lambda: read.cpu()


CUDA = pytest.param(
    "cuda",
    marks=[pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")],
)


@pytest.fixture(params=["cpu", "fake", CUDA])
def rig(request: pytest.FixtureRequest) -> Rig:
    if request.param == "cpu":
        return Rig(CpuDevice(), _launch_on_cpu)
    if request.param == "fake":
        device = FakeDevice()
        return Rig(device, device.launch)
    return Rig(CudaDevice(), _launch_on_cuda)


def source_of(tier: str, store: ExpertStore, device: Device) -> Source:
    return DiskSource(store) if tier == "disk" else HostSource(store, device, chunk_bytes=3 * store.slot_bytes)


@pytest.fixture(scope="module")
def expected(store: ExpertStore) -> Callable[[int, int], torch.Tensor]:
    """The bytes of an expert, read from its file."""
    disk = DiskSource(store)

    def read(layer: int, expert: int) -> torch.Tensor:
        out = allocate_pages(store.slot_bytes)
        disk.read(layer, expert, host_bytes(out))
        return out

    return read


def test_slots_and_staging_are_bytes_that_a_disk_can_be_read_into(rig: Rig) -> None:
    slot, staging = rig.device.allocate(5000), rig.device.staging(5000)
    for memory in (slot, staging):
        assert (memory.dtype, len(memory)) == (torch.uint8, 5000)
    assert slot.device == rig.device.torch_device
    assert staging.data_ptr() % PAGE_BYTES == 0
    target = rig.device.host_buffer(slot)
    if target is not None:
        target[:3] = b"abc"
        assert slot[:3].tolist() == list(b"abc")
        assert slot.data_ptr() % PAGE_BYTES == 0
    rig.device.release(staging)


def test_compute_after_the_wait_reads_what_was_uploaded(rig: Rig) -> None:
    slot, staging = rig.device.allocate(4096), rig.device.staging(4096)
    for value in (1, 2):
        staging.fill_(value)
        copy = rig.device.upload(staging, slot, rig.device.mark())
        assert copy is None or copy.wait() >= 0
        assert rig.launch(slot)().unique().tolist() == [value]
    rig.device.release(staging)


def test_a_slot_keeps_its_bytes_until_queued_compute_has_read_them(rig: Rig) -> None:
    slot, staging = rig.device.allocate(1 << 20), rig.device.staging(1 << 20)
    results = []
    for value in (1, 2, 3):
        staging.fill_(value)
        copy = rig.device.upload(staging, slot, rig.device.mark())
        if copy is not None:
            copy.wait()
        results.append(rig.launch(slot))
    assert [result().unique().tolist() for result in results] == [[1], [2], [3]]
    rig.device.release(staging)


@pytest.mark.parametrize("tier", ["disk", "host"])
def test_the_link_brings_every_expert_through_few_slots(
    rig: Rig, tier: str, store: ExpertStore, expected: Callable[[int, int], torch.Tensor]
) -> None:
    """Slots go from expert to expert while queued compute still reads them, as in a pass."""
    link = Link(source_of(tier, store, rig.device), store, rig.device)
    slots = [rig.device.allocate(store.slot_bytes) for _ in range(6)]
    keys = [(layer, expert) for layer, spec in enumerate(store.layers) for expert in range(spec.experts)]
    transfers = [link.submit(*key, slot) for key, slot in zip(keys, slots, strict=False)]
    reads = []
    for i, key in enumerate(keys):
        link.wait(transfers[i])
        reads.append((key, rig.launch(slots[i % 6])))
        if i + 6 < len(keys):
            transfers.append(link.submit(*keys[i + 6], slots[i % 6]))
    for key, read in reads:
        assert torch.equal(read(), expected(*key)), key
    link.close()
    assert link.stats.transfers == len(keys)
    assert link.stats.moved_bytes == len(keys) * store.slot_bytes
    assert link.stats.busy_s > 0
    if isinstance(rig.device, FakeDevice):
        assert not rig.device.pinned, "all staging memory was given back"
        assert link.stats.busy_s >= rig.device.delay_s * len(keys) * 0.9, "late copies count as busy"


@pytest.fixture
def fake() -> FakeDevice:
    return FakeDevice()


class TestTheFakeFails:
    """Negative controls: what the suite above would not find with a device that forgives."""

    def test_a_read_before_the_copy_was_waited_for(self, fake: FakeDevice) -> None:
        slot, staging = fake.allocate(4096), fake.staging(4096)
        fake.upload(staging, slot, fake.mark())
        with pytest.raises(Misuse, match="before its copy was waited for"):
            fake.launch(slot)

    def test_an_overwrite_of_a_slot_in_use(self, fake: FakeDevice) -> None:
        slot, staging = fake.allocate(4096), fake.staging(4096)
        fake.upload(staging, slot, fake.mark()).wait()
        fake.launch(slot)
        with pytest.raises(Misuse, match="queued compute still reads"):
            fake.upload(staging, slot).wait()  # without the mark

    def test_a_copy_from_memory_that_is_not_pinned(self, fake: FakeDevice) -> None:
        with pytest.raises(Misuse, match="not pinned"):
            fake.upload(allocate_pages(4096), fake.allocate(4096), fake.mark())

    @pytest.mark.parametrize("fault", ["one staging buffer", "no wait"])
    def test_a_link_without_synchronisation(
        self,
        fault: str,
        fake: FakeDevice,
        store: ExpertStore,
        expected: Callable[[int, int], torch.Tensor],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        if fault == "no wait":
            monkeypatch.setattr(FakeCopy, "wait", lambda self: 0.0)
        else:
            only = fake.staging(store.slot_bytes)
            monkeypatch.setattr(Link, "_next_buffer", lambda self, nbytes: only)
        link = Link(DiskSource(store), store, fake)
        slots = [fake.allocate(store.slot_bytes) for _ in range(8)]
        transfers = [link.submit(0, expert, slot) for expert, slot in enumerate(slots)]
        for transfer in transfers:
            link.wait(transfer)
        right = [torch.equal(slot, expected(0, expert)) for expert, slot in enumerate(slots)]
        assert not all(right)
        monkeypatch.undo()
        link.close()


@pytest.mark.parametrize("slow_tier", ["disk", "host", "paced:1GB/s+200us"])
@pytest.mark.parametrize(
    "options",
    [
        {"gamma": 0, "placement": "on-demand"},
        {"gamma": 3, "draft_experts": 2},
        {"gamma": 3, "draft_experts": 2, "draft_pool": "resident", "prefetch": "draft", "controller": "auto"},
        {"gamma": 3, "draft_pool": "low-bit"},
        {"gamma": 3, "draft_experts": 2, "placement": "lru", "drafter": "ngram+pinned"},
    ],
    ids=str,
)
def test_the_engine_is_exact_on_a_device_of_its_own(
    options: dict[str, Any], slow_tier: str, tiny: tuple[Path, PreTrainedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    device = FakeDevice(delay_s=2e-4)
    monkeypatch.setattr("specmoe.engine.open_device", lambda name: device)
    folder, model = tiny
    ids, mask = prompts(3)
    with SpecMoE.from_pretrained(
        folder, store=folder / "store", expert_budget="40%", slow_tier=slow_tier, **options
    ) as engine:
        output = engine.generate(ids, mask, max_new_tokens=10)
    assert torch.equal(output.sequences, reference(model, ids, mask, 10))
    assert output.stats.decode.link.moved_bytes > 0
    assert not device.pinned, "everything that was pinned is given back"


def test_host_memory_that_cannot_be_pinned_is_one_error_that_names_the_fix(store: ExpertStore) -> None:
    device = FakeDevice(pinnable_bytes=5 * store.slot_bytes)
    with pytest.raises(HostMemoryError, match=r"bytes of the experts .* more cannot be held .*use slow_tier='disk'"):
        HostSource(store, device, chunk_bytes=2 * store.slot_bytes)
    assert not device.pinned


def test_a_store_larger_than_free_memory_is_refused_before_it_is_read(
    store: ExpertStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("specmoe.offload.sources.available_bytes", lambda: 1000)
    with pytest.raises(HostMemoryError, match="this host has 1000 free: free host memory"):
        HostSource(store, CpuDevice())


def test_chunks_hold_whole_experts(store: ExpertStore, expected: Callable[[int, int], torch.Tensor]) -> None:
    for chunk_bytes in (1, 3 * store.slot_bytes, 1 << 30):
        source = HostSource(store, CpuDevice(), chunk_bytes=chunk_bytes)
        for layer, spec in enumerate(store.layers):
            for expert in range(spec.experts):
                assert torch.equal(source.view(layer, expert), expected(layer, expert))
        source.close()
