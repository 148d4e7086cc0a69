"""A slow tier has one name, a paced one moves experts at its stated rate, and every tier gives the same bytes."""

from __future__ import annotations

import time

import pytest
import torch

from specmoe import ExpertStore, StoreError
from specmoe.offload.device import CpuDevice, allocate_pages
from specmoe.offload.link import Link
from specmoe.offload.slow_tier import Pace, SlowTier, default_tier
from specmoe.offload.sources import DiskSource, HostSource, open_source


def test_equal_tiers_have_one_text() -> None:
    assert SlowTier.of("disk") == SlowTier("disk")
    assert SlowTier.of("paced: 25 GB/s + 10 us") == SlowTier.of("paced:25000MB/s+0.01ms")
    for text in ("disk", "host", "paced:25GB/s", "paced:0.5GB/s+10us"):
        assert str(SlowTier.of(text)) == text
    assert str(SlowTier.of("paced:500MB/s")) == "paced:0.5GB/s"
    assert (default_tier("cpu"), default_tier("cuda:1")) == ("disk", "host")


@pytest.mark.parametrize("text", ["", "ram", "paced", "paced:0GB/s", "paced:1.2.3GB/s", "paced:1GB", "host:1"])
def test_anything_else_is_refused_with_the_tiers_there_are(text: str) -> None:
    with pytest.raises(ValueError, match=r"use disk, host, or host memory .*paced:25GB/s\+10us"):
        SlowTier.of(text)


@pytest.mark.parametrize("text", ["disk", "host", "paced:10GB/s"])
def test_every_tier_gives_the_same_bytes(store: ExpertStore, text: str) -> None:
    device, tier = CpuDevice(), SlowTier.of(text)
    link = Link(open_source(store, device, tier), store, device, tier.pace())
    slot, expected = device.allocate(store.slot_bytes), allocate_pages(store.slot_bytes)
    link.wait(link.submit(2, 5, slot))
    link.close()
    DiskSource(store).read(2, 5, expected.numpy().data)
    assert torch.equal(slot, expected)
    assert link.stats.moved_bytes == store.slot_bytes


class Clock:
    """Time that passes only in sleeps, each of which ends ``late`` seconds too late."""

    def __init__(self, late: float) -> None:
        self.now, self._late = 0.0, late

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds + self._late


def test_a_paced_link_has_its_mean_rate_although_sleeps_end_late(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(late=6e-5)
    monkeypatch.setattr("specmoe.offload.slow_tier.time", clock)
    pace = Pace(1e9, latency_s=1e-4)
    for _ in range(100):
        pace.hold(1_000_000, clock.now)
    assert clock.now == pytest.approx(100 * 1.1e-3, rel=1e-3)


def test_a_copy_slower_than_the_rate_is_not_made_up_for(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(late=0.0)
    monkeypatch.setattr("specmoe.offload.slow_tier.time", clock)
    pace, started = Pace(1e9), clock.now
    clock.now += 5e-3  # the copy of 1 MB took five times as long
    pace.hold(1_000_000, started)
    assert clock.now == 5e-3
    started = clock.now
    pace.hold(1_000_000, started)
    assert clock.now - started == pytest.approx(1e-3)


def test_a_paced_link_counts_the_stated_time_as_busy(store: ExpertStore) -> None:
    device, tier = CpuDevice(), SlowTier.of("paced:10GB/s+20ms")
    link = Link(open_source(store, device, tier), store, device, tier.pace())
    started = time.perf_counter()
    link.wait(link.submit(0, 0, device.allocate(store.slot_bytes)))
    assert time.perf_counter() - started >= 0.02
    link.close()
    assert link.stats.busy_s >= 0.02


def test_host_memory_is_checked_when_it_is_filled(store: ExpertStore, monkeypatch: pytest.MonkeyPatch) -> None:
    real = DiskSource.read

    def damaged(self: DiskSource, layer: int, expert: int, out: memoryview) -> int:
        done = real(self, layer, expert, out)
        if (layer, expert) == (1, 3):
            out[0] ^= 1
        return done

    monkeypatch.setattr(DiskSource, "read", damaged)
    with pytest.raises(StoreError, match=r"expert 3 of layer .* is corrupt"):
        HostSource(store, CpuDevice())
