"""Attention of a few tokens per row over a cache, compiled by numba: norm, rotation, cache write and scores in one go.

``attend`` is a function of one address: of a block of int64 fields (``specmoe.compute.attention_fields``).  A task is
one row and one head of keys, with the query heads that share it, so no task waits for another.  Numbers are float32.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
from numba import njit

from specmoe.compute.attention_fields import (
    COS,
    COS_ROW,
    EPS,
    GROUP,
    HEADS,
    KEY_SCALE,
    KEYS,
    LENGTH,
    OUT,
    POSITIONS,
    QKV,
    QUERIES,
    QUERY_SCALE,
    SCALING,
    SCRATCH,
    SCRATCH_ROW,
    SIN,
    TASKS,
    VALUES,
    WIDTH,
)
from specmoe.compute.entry import address_of
from specmoe.compute.scalars import _FAST, _FLOAT, _field, _load, _store, _take


@njit(fastmath=_FAST)
def _dot(x: Any, y: Any, n: Any) -> Any:
    total = _FLOAT
    for k in range(n):
        total += _load(_FLOAT, x, k) * _load(_FLOAT, y, k)
    return total


@njit(fastmath=_FAST)
def _add(out: Any, x: Any, factor: Any, n: Any) -> None:
    for k in range(n):
        _store(out, k, _load(_FLOAT, out, k) + factor * _load(_FLOAT, x, k))


@njit(error_model="numpy")
def _turn(source: Any, scale: Any, eps: Any, cos: Any, sin: Any, width: Any, target: Any) -> None:
    """Normalise one head by its root mean square (``scale``: 0 for none), rotate it, and write it to ``target``."""
    half, factor = width // 2, np.float32(1)
    if scale:
        factor = np.float32(1) / math.sqrt(_dot(source, source, width) / np.float32(width) + eps)
    for i in range(half):
        a, b = _load(_FLOAT, source, i) * factor, _load(_FLOAT, source, half + i) * factor
        if scale:
            a *= _load(_FLOAT, scale, i)
            b *= _load(_FLOAT, scale, half + i)
        _store(target, i, a * _load(_FLOAT, cos, i) - b * _load(_FLOAT, sin, i))
        _store(target, half + i, b * _load(_FLOAT, cos, half + i) + a * _load(_FLOAT, sin, half + i))


@njit(error_model="numpy")
def _weigh(query: Any, keys: Any, scores: Any, scaling: Any, n: Any, width: Any) -> Any:
    """Exponentials of a query's scores on ``n`` keys, less the largest score; returns their sum."""
    top = np.float32(-np.inf)
    for j in range(n):
        score = _dot(query, keys + 4 * j * width, width) * scaling
        top = score if score > top else top
        _store(scores, j, score)
    total = _FLOAT
    for j in range(n):
        weight = math.exp(_load(_FLOAT, scores, j) - top)
        total += weight
        _store(scores, j, weight)
    return total


@njit(error_model="numpy")
def _attend(args: Any) -> None:
    heads, group, width, queries = _field(args, HEADS), _field(args, GROUP), _field(args, WIDTH), _field(args, QUERIES)
    shared, numbers = heads // group, args + 8 * SCALING
    scaling, eps = _load(_FLOAT, numbers, 0), _load(_FLOAT, args + 8 * EPS, 0)
    line, head_bytes = 4 * (heads + 2 * shared) * width, 4 * width
    while True:
        task = _take(args)
        if task >= _field(args, TASKS):
            return
        row, head = task // shared, task % shared
        keys = _field(args, KEYS) + task * _field(args, LENGTH) * head_bytes
        values = _field(args, VALUES) + task * _field(args, LENGTH) * head_bytes
        query = _field(args, SCRATCH) + task * _field(args, SCRATCH_ROW)
        for i in range(queries):
            token = row * queries + i
            x, place = _field(args, QKV) + token * line, _field(args, POSITIONS) + 8 * token
            turn = row * _field(args, COS_ROW) + i * head_bytes
            cos, sin = _field(args, COS) + turn, _field(args, SIN) + turn
            position = _field(place, 0)
            source, target = x + (heads + head) * head_bytes, keys + position * head_bytes
            _turn(source, _field(args, KEY_SCALE), eps, cos, sin, width, target)
            source, target = x + (heads + shared + head) * head_bytes, values + position * head_bytes
            for k in range(width):
                _store(target, k, _load(_FLOAT, source, k))
        for i in range(queries):
            token = row * queries + i
            x, place = _field(args, QKV) + token * line, _field(args, POSITIONS) + 8 * token
            turn = row * _field(args, COS_ROW) + i * head_bytes
            cos, sin = _field(args, COS) + turn, _field(args, SIN) + turn
            seen = _field(place, 0) + 1
            for g in range(head * group, (head + 1) * group):
                _turn(x + g * head_bytes, _field(args, QUERY_SCALE), eps, cos, sin, width, query)
                scores = query + head_bytes
                total = _weigh(query, keys, scores, scaling, seen, width)
                out = _field(args, OUT) + (token * heads + g) * head_bytes
                for k in range(width):
                    _store(out, k, _FLOAT)
                for j in range(seen):
                    _add(out, values + j * head_bytes, _load(_FLOAT, scores, j) / total, width)


def attend(args):  # type: ignore[no-untyped-def]
    _attend(args)


@functools.cache
def compiled() -> int:
    """The address of ``attend``: ``void f(int64 address of the fields)``; compiled unless numba's cache has it."""
    return address_of(attend)
