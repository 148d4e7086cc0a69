"""How often a draft's token is the target's, by kind of draft."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

LEAST = 0.5
"""Agreement that a low-bit copy must reach to be made."""
WORTH = 0.8
"""Errors that copies with more bits may still make, over those of fewer bits."""


@dataclass(frozen=True)
class Agreement:
    """Probability that a draft's token is the target's; ``origin`` says where the numbers are from.

    ``by_share``: residents draft, by the share of all experts that is on the device.  ``by_bits``: a copy of every
    expert drafts.
    """

    by_share: Mapping[float, float]
    by_bits: Mapping[int, float]
    origin: str

    def of_residents(self, share: float) -> float:
        """With a share of the experts on the device: all of them agree always, none never."""
        known = {0.0: 0.0, **self.by_share, 1.0: 1.0}
        shares = sorted(known)
        return float(np.interp(share, shares, [known[s] for s in shares]))

    def likely_bits(self) -> list[int]:
        """Bits of the copies that may pay: right at least half the time, and more often than those of fewer bits."""
        likely: list[int] = []
        for bits, right in sorted(self.by_bits.items()):
            fewer = self.by_bits[likely[-1]] if likely else 0.0
            if right >= LEAST and (1 - right) < WORTH * (1 - fewer):
                likely.append(bits)
        return likely


ASSUMED = Agreement({0.1: 0.5, 0.25: 0.6, 0.5: 0.75}, {2: 0.1, 3: 0.4, 4: 0.85, 8: 0.96}, "assumed: not calibrated")
"""Of a checkpoint without a calibration: a language model's, on text that does not repeat itself."""
