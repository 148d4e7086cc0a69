"""Which experts hold a slot on the device, which of them must stay, and which is evicted next."""

from __future__ import annotations

from collections.abc import Callable

import torch

from specmoe.offload.arena import ExpertArena, Key
from specmoe.offload.placement import Placement


class Slots:
    """The arena's slots, shared between experts that are pinned, kept permanently, or kept by the placement policy.

    ``version`` holds a number per layer that changes whenever the set of its resident experts does.
    """

    def __init__(self, layers: int, arena: ExpertArena, placement: Placement) -> None:
        self.version = [0] * layers
        self._arena, self._placement = arena, placement
        self._pinned: list[list[int]] = [[] for _ in range(layers)]
        self._permanent: list[list[int]] = [[] for _ in range(layers)]
        self._resident: list[set[int]] = [set() for _ in range(layers)]

    @property
    def keeps_all(self) -> bool:
        """Whether an expert leaves only when its slot is needed."""
        return self._placement.keeps_all

    @property
    def free(self) -> int:
        return self._arena.free_slots

    @property
    def total(self) -> int:
        return self._arena.slots

    def __contains__(self, key: Key) -> bool:
        return key in self._arena

    def buffer(self, key: Key) -> torch.Tensor:
        """The slot of an expert that has one, uint8 [slot_bytes]."""
        return self._arena.buffer(key)

    def index(self, key: Key) -> int:
        """The number of the slot of an expert that has one."""
        return self._arena.index(key)

    def resident(self, layer: int) -> set[int]:
        """Experts of the layer that have a slot, including those still being loaded, without merged slices."""
        return self._resident[layer] - set(self._permanent[layer])

    def holds(self, layer: int, expert: int) -> bool:
        """Whether an expert or merged slice has a slot."""
        return expert in self._resident[layer]

    def pinned(self, layer: int) -> list[int]:
        """The layer's draft experts: resident at all times, except while a pass first loads them."""
        return self._pinned[layer]

    def pin(self, layer: int, experts: list[int]) -> None:
        """Replace the layer's pinned set; the next pass over the layer must ask for those not resident."""
        self._pinned[layer] = experts

    def permanent(self, layer: int) -> list[int]:
        """The layer's merged slices, which are never evicted."""
        return self._permanent[layer]

    def keep_permanently(self, layer: int, experts: list[int]) -> None:
        """Name the layer's merged slices; the next pass over the layer must ask for those not resident."""
        self._permanent[layer] = experts

    def acquire(self, key: Key) -> torch.Tensor:
        """Give ``key`` one of the free slots (uint8 [slot_bytes]).

        Raises:
            ValueError: none is free, or ``key`` has one already.
        """
        slot = self._arena.acquire(key)
        self._resident[key[0]].add(key[1])
        self.version[key[0]] += 1
        return slot

    def release(self, key: Key) -> None:
        """Free an expert's slot."""
        self._arena.release(key)
        self._resident[key[0]].discard(key[1])
        self.version[key[0]] += 1

    def release_unless_kept(self, key: Key) -> None:
        """Free the slot of an expert that is not pinned or permanent and that the policy does not keep."""
        if not self._is_fixed(key) and not self._placement.retain(key):
            self.release(key)

    def least_valued(self, is_spared: Callable[[Key], bool]) -> Key | None:
        """The evictable expert the policy values least, of those that are not spared; None when there is none."""
        candidates = [key for key in self._arena.occupants() if not self._is_fixed(key) and not is_spared(key)]
        return min(candidates, key=self._placement.priority) if candidates else None

    def value(self, key: Key) -> float:
        """What the policy thinks an expert's slot is worth, compared with that of another expert."""
        return self._placement.priority(key)

    def expected(self, key: Key) -> float:
        """Tokens per pass that will probably use the expert."""
        return self._placement.expected(key)

    def clear(self) -> None:
        """Free every slot and unpin all experts; merged slices stay named as permanent."""
        self._arena.clear()
        for layer in range(len(self.version)):
            self._pinned[layer] = []
            self._resident[layer] = set()
            self.version[layer] += 1

    def _is_fixed(self, key: Key) -> bool:
        return key[1] in self._pinned[key[0]] or key[1] in self._permanent[key[0]]
