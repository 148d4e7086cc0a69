"""Root-mean-square norms of a few rows, compiled by numba for one thread: less than waking another one takes.

``norm`` takes its arguments as they are, ``add_and_norm`` the address of a block of int64 fields: ``X`` (rows),
``ADDED`` (rows, or 0), ``SUM`` and ``OUT`` (their sum and its norm), ``SCALE``, ``ROWS``, ``WIDTH``, and ``EPS`` (a
float32 in the low half).
"""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit, types

from specmoe.compute.entry import address_of
from specmoe.compute.norm_fields import ADDED, EPS, OUT, ROWS, SCALE, SUM, WIDTH, X
from specmoe.compute.scalars import _FAST, _FLOAT, _field, _load, _store


@njit(fastmath=_FAST)
def _squares(x: Any, n: Any) -> Any:
    total = _FLOAT
    for k in range(n):
        total += _load(_FLOAT, x, k) * _load(_FLOAT, x, k)
    return total


@njit(error_model="numpy")
def _norm(x: Any, scale: Any, out: Any, rows: Any, width: Any, eps: Any) -> None:
    for r in range(rows):
        start = 4 * r * width
        factor = np.float32(1) / np.float32(math.sqrt(_squares(x + start, width) / np.float32(width) + eps))
        for k in range(width):
            _store(out + start, k, _load(_FLOAT, scale, k) * (_load(_FLOAT, x + start, k) * factor))


@njit(error_model="numpy")
def _add_and_norm(args: Any) -> None:
    x, added, rows, width = _field(args, X), _field(args, ADDED), _field(args, ROWS), _field(args, WIDTH)
    if added:
        total = _field(args, SUM)
        for k in range(rows * width):
            _store(total, k, _load(_FLOAT, x, k) + _load(_FLOAT, added, k))
        x = total
    _norm(x, _field(args, SCALE), _field(args, OUT), rows, width, _load(_FLOAT, args + 8 * EPS, 0))


def norm(x, scale, out, rows, width, eps):  # type: ignore[no-untyped-def]
    _norm(x, scale, out, rows, width, eps)


def add_and_norm(args):  # type: ignore[no-untyped-def]
    _add_and_norm(args)


@functools.cache
def compiled() -> Callable[[int, int, int, int, int, float], None]:
    """``norm(x, scale, out, rows, width, eps)`` on addresses of float32 rows; compiled unless numba's cache has it."""
    word = types.intp
    words = [ctypes.c_ssize_t] * 5
    address = address_of(norm, word, word, word, word, word, types.float32)
    return ctypes.CFUNCTYPE(None, *words, ctypes.c_float)(address)


@functools.cache
def compiled_sum() -> int:
    """The address of ``add_and_norm``: ``void f(int64 address of the fields)``."""
    return address_of(add_and_norm)
