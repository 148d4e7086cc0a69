"""A link over a source that tests can hold back or break, with an arena and a residency on top."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

import numpy as np
import torch

from specmoe import ExpertStore, StoreError
from specmoe.offload.arena import ExpertArena, Key
from specmoe.offload.device import CpuDevice
from specmoe.offload.link import Link
from specmoe.offload.placement import LeastFrequentlyUsed, Placement
from specmoe.offload.residency import Residency
from specmoe.offload.sources import DiskSource, Source

NONE_SPARED = frozenset[Key]().__contains__


@dataclass
class SlowSource:
    """A source that takes its time, or fails for some experts; remembers in which order it was read."""

    base: Source
    seconds: float = 0.0
    broken: set[Key] = field(default_factory=set)
    gate: threading.Semaphore | None = None
    began: list[Key] = field(default_factory=list)

    def read(self, layer: int, expert: int, out: memoryview) -> int:
        self.began.append((layer, expert))
        if self.gate is not None:
            self.gate.acquire(timeout=2)  # a wrong order fails a claim instead of hanging
        time.sleep(self.seconds)
        if (layer, expert) in self.broken:
            out[:64] = b"\xff" * 64
            raise StoreError(f"expert {expert} of layer {layer} is unreadable")
        return self.base.read(layer, expert, out)

    def view(self, layer: int, expert: int) -> torch.Tensor | None:
        return None

    def check(self, layer: int, expert: int, data: memoryview) -> None:
        self.base.check(layer, expert, data)

    def close(self) -> None:
        self.base.close()


class Bench:
    """A link over a gated source, an arena of ``slots`` and a residency on top."""

    def __init__(self, store: ExpertStore, slots: int, placement: Placement, gated: bool = True) -> None:
        self.store, self.stride = store, store.slot_bytes
        self.source = SlowSource(DiskSource(store), gate=threading.Semaphore(0) if gated else None)
        device = CpuDevice()
        self.link = Link(self.source, store, device)
        self.arena = ExpertArena(device, store.slot_bytes, slots * store.slot_bytes, store.total_experts)
        self.residency = Residency(store, self.arena, self.link, placement)

    def let_through(self, transfers: int) -> None:
        assert self.source.gate is not None
        self.source.gate.release(transfers)

    def until_begun(self, count: int) -> None:
        deadline = time.monotonic() + 60
        while len(self.source.began) < count and time.monotonic() < deadline:
            time.sleep(0.0005)
        assert len(self.source.began) >= count

    def until_moved(self, count: int) -> None:
        deadline = time.monotonic() + 60
        while self.link.stats.transfers < count and time.monotonic() < deadline:
            time.sleep(0.0005)
        assert self.link.stats.transfers >= count

    def ask(self, layer: int, *experts: int) -> None:
        """One target pass over a layer."""
        for _ in self.residency.stream(layer, sorted(experts)):
            pass

    def counters(self) -> dict[str, int]:
        """Prefetch counters in experts."""
        stats = vars(self.residency.stats)
        names = ("prefetched", "useful", "late", "wasted")
        return {name: stats[f"{name}_bytes"] // self.stride for name in names}


def warm_bench(store: ExpertStore, uses: dict[int, int]) -> Bench:
    """A full arena: experts 0 .. 3 of layer 0, each used so many times."""
    placement = LeastFrequentlyUsed([8, 8, 8], decay=1.0)
    bench = Bench(store, 4, placement, gated=False)
    placement.observe(0, np.array([uses.get(e, 0) for e in range(8)]))
    bench.ask(0, 0, 1, 2, 3)
    assert bench.arena.free_slots == 0
    return bench
