"""The inner loops of quantisation, compiled by numba; all arrays are float32 unless stated."""

from __future__ import annotations

import numpy as np
from numba import njit

_GROUP = 32  # a constant of the compiled loops; specmoe.compute.codes.GROUP


@njit(cache=True, fastmath=True, nogil=True, error_model="numpy")
def search(values, costs, zero, top, denominators, scales):  # type: ignore[no-untyped-def]
    """Write the best scale of each group: values [n, 32], costs [G, 32] repeated, denominators [d], scales [n].

    With the levels l that a scale gives, the error is least at the scale sum(c v l) / sum(c l l), and then less by
    sum(c v l)^2 / sum(c l l) than that of zeros.
    """
    zeros = np.float32(0)
    for group in range(len(values)):
        row, cost = values[group], costs[group % len(costs)]
        largest = zeros
        for k in range(_GROUP):
            largest = max(largest, abs(row[k]))
        best, scale = zeros, zeros
        if largest > zeros:
            for denominator in denominators:
                factor = denominator / largest
                upper, lower = zeros, zeros
                for k in range(_GROUP):
                    code = np.floor(row[k] * factor + zero + np.float32(0.5))
                    level = min(max(code, zeros), top) - zero
                    upper += cost[k] * row[k] * level
                    lower += cost[k] * level * level
                if lower > zeros:
                    gain = upper * upper / lower
                    if gain > best:
                        best, scale = gain, upper / lower
        scales[group] = scale


@njit(cache=True, fastmath=True, nogil=True, error_model="numpy")
def encode(values, scales, zero, top, codes):  # type: ignore[no-untyped-def]
    """Write the codes (uint8 [n, 32]) of values [n, 32] nearest to them with scales [n]."""
    zeros = np.float32(0)
    for group in range(len(values)):
        scale = scales[group]
        factor = np.float32(1) / scale if scale != zeros else zeros
        for k in range(_GROUP):
            code = np.floor(values[group, k] * factor + zero + np.float32(0.5))
            codes[group, k] = np.uint8(min(max(code, zeros), top))
