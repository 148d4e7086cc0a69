"""Quantises weight matrices: codes of 2, 3, 4 or 8 bits and one scale for each group of 32 along a row.

Each group's scale is the one with the least squared error among some that make the largest weight the last code or
clip it; for the codes that a scale gives, the best scale follows in closed form.  An input feature may be given more
importance than others.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch

from specmoe.compute.codes import GROUP, groups, pack, zero_of

TRIED = 12
"""Scales tried per group."""
RANGE = {2: (1.0, 2.2), 3: (1.0, 1.6), 4: (0.95, 1.3), 8: (0.99, 1.02)}
"""The largest weight of a group over the largest that has a code, for the scales tried: above 1 it is clipped."""


def quantise(weight: torch.Tensor, bits: int, importance: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
    """Packed codes uint8 [R, G * 4 * bits] and scales bfloat16 [R, G] of a matrix [R, C], G = ceil(C / 32).

    ``importance``: what an error of each input feature's weights costs, [C]; equal by default.
    """
    rows, width = weight.shape
    length = groups(width)
    single = torch.zeros(rows, length * GROUP)
    single[:, :width] = weight
    cost = torch.zeros(length * GROUP)
    cost[:width] = 1.0 if importance is None else importance
    zero, top = zero_of(bits), 2**bits - 1
    best = torch.empty(rows * length)
    search, encode = _compiled()
    values, costs = single.view(-1, GROUP).numpy(), cost.view(-1, GROUP).numpy()
    search(values, costs, np.float32(zero), np.float32(top), _denominators(bits), best.numpy())
    scales = best.to(torch.bfloat16)
    codes = torch.empty(rows * length, GROUP, dtype=torch.uint8)
    encode(values, scales.float().numpy(), np.float32(zero), np.float32(top), codes.numpy())
    return pack(codes, bits).view(rows, -1), scales.view(rows, length)


def _denominators(bits: int) -> np.ndarray:
    """The largest weight of a group over the scales to try, float32 [TRIED]."""
    return (zero_of(bits) * np.linspace(*RANGE[bits], TRIED)).astype(np.float32)


@functools.cache
def _compiled() -> tuple[Any, Any]:
    """The compiled functions; numba is imported when it is first needed."""
    from specmoe.drafting import rounding

    return rounding.search, rounding.encode
