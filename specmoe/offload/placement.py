"""Placement policies: which experts stay on the device after their layer is done, and which are evicted first.

``retain`` is called when a layer has finished with an expert; ``priority`` orders the experts that may be
evicted (lowest first).  Draft experts are pinned independently of the policy.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from specmoe.offload.arena import Key
from specmoe.options import PlacementName

IN_TRANSIT = 2
"""Slots always granted to experts that are not kept: one is filled while the other is in use."""


class Placement(Protocol):
    """What residency needs of a policy.

    ``keeps_all``: ``retain`` is true of every expert.
    """

    keeps_all: bool

    def observe(self, layer: int, counts: NDArray[np.int64]) -> None:
        """A target pass used the layer's experts ``counts`` times each (int64 [E])."""
        ...

    def retain(self, key: Key) -> bool:
        """Whether the expert stays on the device after its layer is done."""
        ...

    def priority(self, key: Key) -> float:
        """The value of keeping the expert; the lowest is evicted first."""
        ...

    def expected(self, key: Key) -> float:
        """Tokens per pass that will probably use the expert, estimated from past passes."""
        ...

    def reset(self) -> None:
        """Forget all passes."""
        ...


class OnDemand:
    """Keeps nothing: every pass loads every expert it needs (MoE-OnDemand)."""

    keeps_all = False

    def observe(self, layer: int, counts: NDArray[np.int64]) -> None:
        pass

    def retain(self, key: Key) -> bool:
        return False

    def priority(self, key: Key) -> float:
        return 0.0

    def expected(self, key: Key) -> float:
        return 0.0

    def reset(self) -> None:
        pass


class LeastRecentlyUsed:
    """Keeps everything until its slot is needed; evicts the longest unused first."""

    keeps_all = True

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._clock = 0
        self._used: dict[Key, int] = {}

    def observe(self, layer: int, counts: NDArray[np.int64]) -> None:
        self._clock += 1
        for expert in counts.nonzero()[0].tolist():
            self._used[layer, expert] = self._clock

    def retain(self, key: Key) -> bool:
        return True

    def priority(self, key: Key) -> float:
        return float(self._used.get(key, 0))

    def expected(self, key: Key) -> float:
        layers = len({layer for layer, _ in self._used}) or 1
        passes_ago = (self._clock - self._used.get(key, 0)) / layers
        return float(0.5**passes_ago)


class LeastFrequentlyUsed:
    """Keeps everything until its slot is needed; evicts the one with the lowest decayed use count first.

    ``decay`` multiplies older counts at each pass of the layer (1 keeps them all).
    """

    keeps_all = True

    def __init__(self, experts: list[int], decay: float = 0.9) -> None:
        self._experts, self._decay = experts, decay
        self.reset()

    def reset(self) -> None:
        self._counts = [np.zeros(n, dtype=np.float32) for n in self._experts]
        self._weight = np.zeros(len(self._experts), dtype=np.float32)  # number of passes, decayed likewise
        self._values: list[list[float] | None] = [None] * len(self._experts)

    def observe(self, layer: int, counts: NDArray[np.int64]) -> None:
        mine = self._counts[layer]
        mine *= self._decay
        mine += counts
        self._weight[layer] = self._weight[layer] * self._decay + 1
        self._values[layer] = None

    def retain(self, key: Key) -> bool:
        return True

    def priority(self, key: Key) -> float:
        values = self._values[key[0]]
        if values is None:  # read for many experts at every eviction
            values = self._values[key[0]] = self._counts[key[0]].tolist()
        return values[key[1]]

    def expected(self, key: Key) -> float:
        return self.priority(key) / max(1e-9, float(self._weight[key[0]]))


class TopFraction:
    """Keeps the ``per_layer`` most frequently used experts of each layer (MoE-Caching).

    Counts accumulate over all passes, as in the paper's baseline.
    """

    keeps_all = False

    def __init__(self, experts: list[int], per_layer: int) -> None:
        self._experts, self._per_layer = experts, per_layer
        self.reset()

    def reset(self) -> None:
        self._counts = [torch.zeros(n) for n in self._experts]
        self._values: list[list[float]] = [c.tolist() for c in self._counts]  # read at every eviction
        self._kept: list[set[int]] = [set() for _ in self._experts]
        self._passes = [0] * len(self._experts)

    def observe(self, layer: int, counts: NDArray[np.int64]) -> None:
        self._counts[layer] += torch.from_numpy(counts)
        self._values[layer] = self._counts[layer].tolist()
        self._passes[layer] += 1
        size = min(self._per_layer, len(counts))
        self._kept[layer] = set(self._counts[layer].topk(size).indices.tolist())

    def retain(self, key: Key) -> bool:
        return key[1] in self._kept[key[0]]

    def priority(self, key: Key) -> float:
        count = self._values[key[0]][key[1]]
        return count if self.retain(key) else -1.0

    def expected(self, key: Key) -> float:
        return self._values[key[0]][key[1]] / max(1, self._passes[key[0]])


def make_placement(name: PlacementName, experts: list[int], slots: int) -> Placement:
    """The policy for a model whose MoE layers have ``experts[i]`` experts, and for an arena of ``slots``.

    ``top-fraction`` keeps an equal number per layer and leaves ``IN_TRANSIT`` slots for the rest.
    """
    if name == "on-demand":
        return OnDemand()
    if name == "lru":
        return LeastRecentlyUsed()
    if name == "lfu":
        return LeastFrequentlyUsed(experts)
    if name == "top-fraction":
        return TopFraction(experts, max(0, (slots - IN_TRANSIT) // len(experts)))
    raise ValueError(f"unknown placement {name!r}: use on-demand, lru, lfu or top-fraction")
