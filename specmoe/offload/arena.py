"""The device memory for experts: a fixed number of equal slots within a hard byte budget."""

from __future__ import annotations

import torch

from specmoe.errors import BudgetError
from specmoe.offload.device import Device

Key = tuple[int, int]
"""(MoE layer, expert id); MoE layers are counted from 0 in store order."""


def slots_within(budget_bytes: int, slot_bytes: int, max_slots: int) -> int:
    """The number of slots of an arena.

    Raises:
        BudgetError: the budget is smaller than one slot.
    """
    slots = min(budget_bytes // slot_bytes, max_slots)
    if slots < 1:
        raise BudgetError(
            f"expert budget of {budget_bytes} bytes is smaller than one expert ({slot_bytes} bytes): raise it"
        )
    return slots


class ExpertArena:
    """Slots of equal size, and which expert occupies which.

    A slot fits the largest expert of the model; smaller experts leave part of it unused.  ``reserved``, uint8
    [reserved_bytes], is the part of the budget that holds other forms of experts.

    Raises:
        BudgetError: the budget is smaller than one slot.
    """

    def __init__(
        self, device: Device, slot_bytes: int, budget_bytes: int, max_slots: int, reserved_bytes: int = 0
    ) -> None:
        self.slot_bytes = slot_bytes
        self.budget_bytes = budget_bytes
        self.slots = slots_within(budget_bytes - reserved_bytes, slot_bytes, max_slots)
        self._memory = device.allocate(self.slots * slot_bytes)
        self.reserved = device.allocate(reserved_bytes) if reserved_bytes else self._memory[:0]
        self._free = list(range(self.slots - 1, -1, -1))
        self._slot_of: dict[Key, int] = {}
        self.peak_slots = 0

    @property
    def peak_bytes(self) -> int:
        """Most bytes ever occupied at once; what is reserved counts in full."""
        return self.peak_slots * self.slot_bytes + len(self.reserved)

    @property
    def free_slots(self) -> int:
        return len(self._free)

    def __contains__(self, key: Key) -> bool:
        return key in self._slot_of

    def occupants(self) -> list[Key]:
        """Experts with a slot, in the order they got it."""
        return list(self._slot_of)

    def acquire(self, key: Key) -> torch.Tensor:
        """Give ``key`` one of the free slots (uint8 [slot_bytes]).

        Raises:
            ValueError: ``key`` has a slot already, or none is free.
        """
        if key in self._slot_of:
            raise ValueError(f"expert {key} already has a slot")
        if not self._free:
            raise ValueError(f"no slot is free for expert {key}: release one first")
        self._slot_of[key] = self._free.pop()
        self.peak_slots = max(self.peak_slots, len(self._slot_of))
        return self.buffer(key)

    def buffer(self, key: Key) -> torch.Tensor:
        """The slot of an occupant, uint8 [slot_bytes]."""
        start = self._slot_of[key] * self.slot_bytes
        return self._memory[start : start + self.slot_bytes]

    def index(self, key: Key) -> int:
        """The number of an occupant's slot."""
        return self._slot_of[key]

    def release(self, key: Key) -> None:
        """Free an occupant's slot."""
        self._free.append(self._slot_of.pop(key))

    def clear(self) -> None:
        """Free every slot."""
        for key in self.occupants():
            self.release(key)
