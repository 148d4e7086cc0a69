"""Quantises weight matrices: codes of 2, 3, 4 or 8 bits and one scale for each group of 32 along a row.

Each group's scale is the one with the least squared error among some that make the largest weight the last code or
clip it; for the codes that a scale gives, the best scale follows in closed form.  An input feature may be given more
importance than others.
"""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from specmoe.compute.codes import GROUP, groups, pack, zero_of

ROWS_PER_THREAD = 64
"""Fewest rows that are worth a thread."""
TRIED = 12
"""Scales tried per group."""
RANGE = {2: (1.0, 2.2), 3: (1.0, 1.6), 4: (0.95, 1.3), 8: (0.99, 1.02)}
"""The largest weight of a group over the largest that has a code, for the scales tried: above 1 it is clipped."""


def quantise(weight: torch.Tensor, bits: int, importance: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
    """Packed codes uint8 [R, G * 4 * bits] and scales bfloat16 [R, G] of a matrix [R, C], G = ceil(C / 32).

    ``importance``: what an error of each input feature's weights costs, [C]; equal by default.
    """
    codes, scales = _coded(weight, bits, importance)
    return pack(codes, bits).view(len(weight), -1), scales.view(len(weight), -1)


def rounded(weight: torch.Tensor, bits: int, importance: torch.Tensor | None = None) -> torch.Tensor:
    """The matrix that the codes and scales of ``quantise`` stand for: float32 [R, C]."""
    codes, scales = _coded(weight, bits, importance)
    values = (codes.float() - zero_of(bits)) * scales.float()[:, None]  # [R * G, 32]
    return values.view(len(weight), -1)[:, : weight.shape[1]].contiguous()


def _coded(weight: torch.Tensor, bits: int, importance: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes uint8 [R * G, 32] and scales bfloat16 [R * G]; rows are shared between torch's threads."""
    rows, width = weight.shape
    length = groups(width)
    single = torch.zeros(rows, length * GROUP)
    single[:, :width] = weight
    cost = torch.zeros(length * GROUP)
    cost[:width] = 1.0 if importance is None else importance
    zero, top = np.float32(zero_of(bits)), np.float32(2**bits - 1)
    best, codes = torch.empty(rows * length), torch.empty(rows * length, GROUP, dtype=torch.uint8)
    search, encode = _compiled()
    values, costs, tried = single.view(-1, GROUP).numpy(), cost.view(-1, GROUP).numpy(), _denominators(bits)
    found, levels = best.numpy(), codes.numpy()
    threads = min(torch.get_num_threads(), max(1, rows // ROWS_PER_THREAD))
    ends = [length * (rows * i // threads) for i in range(threads + 1)]
    parts = [slice(start, end) for start, end in pairwise(ends)]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda part: search(values[part], costs, zero, top, tried, found[part]), parts))
        scales = best.to(torch.bfloat16)
        rounded_scales = scales.float().numpy()
        list(pool.map(lambda part: encode(values[part], rounded_scales[part], zero, top, levels[part]), parts))
    return codes, scales


def _denominators(bits: int) -> np.ndarray:
    """The largest weight of a group over the scales to try, float32 [TRIED]."""
    return (zero_of(bits) * np.linspace(*RANGE[bits], TRIED)).astype(np.float32)


@functools.cache
def _compiled() -> tuple[Any, Any]:
    """The compiled functions; numba is imported when it is first needed."""
    from specmoe.drafting import rounding

    return rounding.search, rounding.encode
