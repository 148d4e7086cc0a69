"""Bytes of a model's experts by the dtype they are stored in: what shares of an experiment are taken of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class ExpertSizes:
    """A model's experts.

    ``slots`` is their number, ``slot_bytes`` what one takes on the device by stored dtype, and ``own`` the stored dtype
    that an experiment's null stands for.
    """

    slots: int
    slot_bytes: Mapping[str, int]
    own: str

    def total_bytes(self, stored_dtype: str) -> int:
        """Bytes of all slots."""
        return self.slots * self.slot_bytes[stored_dtype]
