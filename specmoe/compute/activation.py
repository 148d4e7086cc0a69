"""The activation between an expert's two products, compiled by numba; loops that the compiler turns into vectors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

from specmoe.compute.fields import ALPHA, GATE, GELU, GELU_TANH, LIMIT, NUMBERS, OFFSET, RELU_SQUARED, SILU, UNGATED
from specmoe.compute.scalars import _FLOAT, _field, _load, _store, _two_to

_ROOT_HALF, _ROOT_2_OVER_PI = np.float32(math.sqrt(0.5)), np.float32(math.sqrt(2 / math.pi))
_HALF, _ONE, _TWO = np.float32(0.5), np.float32(1), np.float32(2)
_LOG2_E, _LN2_HIGH, _LN2_LOW = np.float32(1.44269504088896341), np.float32(0.693359375), np.float32(-2.12194440e-4)
_LEAST, _MOST = np.float32(-87.3), np.float32(88.3)  # beyond them float32 has no normal result
_TERMS = tuple(np.float32(1 / math.factorial(n)) for n in range(8))
_C2, _C3, _C4, _C5, _C6, _C7 = _TERMS[2:]


@njit(error_model="numpy")
def _exp(x: Any) -> Any:
    """The exponential within two units in the last place, without a call or a branch; infinity above ``_MOST``."""
    within = _LEAST if x < _LEAST else (_MOST if x > _MOST else x)
    turns = np.int32(within * _LOG2_E + (_HALF if within > 0 else -_HALF))
    rounded = np.float32(turns)
    rest = within - rounded * _LN2_HIGH - rounded * _LN2_LOW  # at most half of ln 2
    series = _C2 + rest * (_C3 + rest * (_C4 + rest * (_C5 + rest * (_C6 + rest * _C7))))
    result = (_ONE + rest + rest * rest * series) * _two_to(turns)
    return np.float32(np.inf) if x > _MOST else result


@njit(error_model="numpy")
def _silu(x: Any, alpha: Any) -> Any:
    return x / (_ONE + _exp(-alpha * x))


@njit(error_model="numpy")
def _other(name: Any, x: Any) -> Any:
    if name == GELU:
        return _HALF * x * (_ONE + math.erf(x * _ROOT_HALF))
    if name == GELU_TANH:
        inner = _ROOT_2_OVER_PI * (x + np.float32(0.044715) * x * x * x)
        return _HALF * x * (_TWO - _TWO / (_exp(_TWO * inner) + _ONE))
    positive = _FLOAT if x < 0 else x
    return positive * positive if name == RELU_SQUARED else positive


@njit(error_model="numpy")
def _activate(args: Any, at: Any, up: Any, n: Any) -> None:
    """Replace ``n`` numbers at ``at`` by their activation, times the gated numbers at ``up`` where there are any."""
    gate, numbers = _field(args, GATE), _field(args, NUMBERS)
    name, alpha = gate & 15, _load(_FLOAT, numbers, ALPHA)
    if gate & UNGATED:
        for k in range(n):
            x = _load(_FLOAT, at, k)
            _store(at, k, _silu(x, alpha) if name == SILU else _other(name, x))
        return
    limit, offset = _load(_FLOAT, numbers, LIMIT), _load(_FLOAT, numbers, OFFSET)
    if name == SILU:
        for k in range(n):
            a, b = _load(_FLOAT, at, k), _load(_FLOAT, up, k)
            a = limit if a > limit else a
            b = limit if b > limit else (-limit if b < -limit else b)
            _store(at, k, _silu(a, alpha) * (b + offset))
        return
    for k in range(n):
        a, b = _load(_FLOAT, at, k), _load(_FLOAT, up, k)
        a = limit if a > limit else a
        b = limit if b > limit else (-limit if b < -limit else b)
        _store(at, k, _other(name, a) * (b + offset))
