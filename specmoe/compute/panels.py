"""Products for many rows, compiled by numba: rows are packed into panels, whose tokens are the lanes of a vector.

A panel holds the numbers of LANES tokens: float32 [depth, LANES].  ``pack`` makes panels of input rows, ``up`` computes
a layer's first products with their activation for all experts given, ``down`` the second ones, or any product with a
bias; between them tokens stay in panels.  ``widen`` writes weights as float32.  Arguments and sharing of work are those
of ``specmoe.compute.streaming``.  Weights of any kind are read once for all tokens of an expert and widened into memory
of each thread.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numba import njit

from specmoe.compute.activation import _activate
from specmoe.compute.codes import GROUP
from specmoe.compute.entry import address_of
from specmoe.compute.fields import (
    BFLOAT16,
    BITS,
    BLOCK,
    BLOCKS,
    DEPTH,
    DOWN_BIAS,
    DOWN_SCALES,
    DOWN_WEIGHT,
    END,
    EXPERT_FIELDS,
    FIRST_BIAS,
    FIRST_PANEL,
    FIRST_SCALES,
    FIRST_WEIGHT,
    FLOAT16,
    FLOAT32,
    GATE,
    GROUPS,
    HIDDEN,
    INNER,
    KIND,
    LINE,
    ORDER,
    OUT,
    PANELS,
    RANGES,
    SCRATCH,
    SCRATCH_BYTES,
    SLOT,
    START,
    TASKS,
    TOP_K,
    UNGATED,
    UP,
    WIDTH,
    X,
)
from specmoe.compute.packed import _EIGHT, _FOUR, _THREE, _TWO, _write
from specmoe.compute.scalars import _FLOAT, _field, _load, _next_task, _set_field, _store, _take
from specmoe.compute.streaming import _first_row
from specmoe.compute.vectors import LANES, MANY, ONE, THREE, TWO, _panel_products, _space, _transpose, _widen_row

_LANES = (0,) * LANES
_SUMS = (0,) * (len(MANY) * len(THREE))
_BFLOAT16, _FLOAT16 = np.uint16(0), np.int16(0)
_VECTOR_BYTES = 4 * LANES


@njit(error_model="numpy")
def _widened(kind: Any, weight: Any, scales: Any, row: Any, n: Any, target: Any) -> Any:
    """The address of a weight row of ``n`` numbers as float32; other kinds are widened at ``target``."""
    if kind == FLOAT32:
        return weight + 4 * row * n
    if kind == BFLOAT16:
        _widen_row(_BFLOAT16, weight + 2 * row * n, n, target)
        return target
    if kind == FLOAT16:
        _widen_row(_FLOAT16, weight + 2 * row * n, n, target)
        return target
    bits, length = kind - BITS, n // GROUP
    codes, scale = weight + row * 4 * bits * length, scales + 2 * row * length
    for group in range(length):
        to = target + 4 * GROUP * group
        if bits == 2:
            _write(_TWO, codes, scale, group, to)
        elif bits == 3:
            _write(_THREE, codes, scale, group, to)
        elif bits == 4:
            _write(_FOUR, codes, scale, group, to)
        else:
            _write(_EIGHT, codes, scale, group, to)
    return target


@njit(error_model="numpy")
def _added(kind: Any, bias: Any, row: Any) -> Any:
    """What the bias adds to an output row; packed weights have a float32 bias."""
    if bias == 0:
        return _FLOAT
    if kind == BFLOAT16:
        return _load(_BFLOAT16, bias, row)
    if kind == FLOAT16:
        return _load(_FLOAT16, bias, row)
    return _load(_FLOAT, bias, row)


@njit(error_model="numpy")
def _multiply(at: Any, x: Any, distance: Any, left: Any, n: Any, ahead: Any, sums: Any) -> Any:
    """Products of the weight rows at ``at`` with one to three of the ``left`` panels from ``x``; returns how many."""
    if left == 3 or left > 4:
        _panel_products(MANY, THREE, at, x, distance, n, ahead, sums)
        return 3
    if left >= 2:
        _panel_products(MANY, TWO, at, x, distance, n, ahead, sums)
        return 2
    _panel_products(MANY, ONE, at, x, distance, n, ahead, sums)
    return 1


@njit(error_model="numpy")
def _pack(args: Any) -> None:
    """A task is a panel: a range of picks, of which the last is repeated to fill it."""
    depth, order, top_k, x = _field(args, DEPTH), _field(args, ORDER), _field(args, TOP_K), _field(args, X)
    rows = _space(_LANES)
    share, done = _take(args + 8 * SLOT), 0
    while True:
        task, done = _next_task(args, share, done)
        if task >= _field(args, TASKS):
            return
        start, count = _field(_field(args, RANGES), 2 * task), _field(_field(args, RANGES), 2 * task + 1)
        out = _field(args, PANELS) + task * _VECTOR_BYTES * depth
        for t in range(LANES):
            _set_field(rows, t, x + 4 * depth * (_field(order, start + min(t, count - 1)) // top_k))
        whole = depth // LANES * LANES
        for k in range(0, whole, LANES):
            _transpose(_LANES, rows, 4 * k, out + _VECTOR_BYTES * k)
        for k in range(whole, depth):
            for t in range(LANES):
                _store(out + _VECTOR_BYTES * k, t, _load(_FLOAT, _field(rows, t), k))


@njit(error_model="numpy")
def _up(args: Any) -> None:
    blocks, block, kind = _field(args, BLOCKS), _field(args, BLOCK), _field(args, KIND)
    tasks, groups = _field(args, TASKS), _field(args, GROUPS)
    depth, inner, gate = _field(args, DEPTH), _field(args, INNER), _field(args, GATE)
    up, line = _field(args, UP), _field(args, LINE)
    at, sums = _space(MANY), _space(_SUMS)
    step = len(MANY) if gate & UNGATED else len(MANY) // 2
    distance = _VECTOR_BYTES * depth
    share, done = _take(args + 8 * SLOT), 0
    scratch = _field(args, SCRATCH) + share * _field(args, SCRATCH_BYTES)
    while True:
        task, done = _next_task(args, share, done)
        if task >= tasks:
            return
        expert = groups + (task // blocks) * (8 * EXPERT_FIELDS)
        weight, bias, scales = _field(expert, FIRST_WEIGHT), _field(expert, FIRST_BIAS), _field(expert, FIRST_SCALES)
        panels = -(-(_field(expert, END) - _field(expert, START)) // LANES)
        x = _field(args, PANELS) + _field(expert, FIRST_PANEL) * distance
        hidden = _field(args, HIDDEN) + _field(expert, FIRST_PANEL) * _VECTOR_BYTES * line
        first = (task % blocks) * block
        last = min(inner, first + block)
        for i in range(first, last, step):
            for q in range(len(MANY)):
                row = _first_row(gate, inner, min(i + q % step, last - 1), q // step)
                _set_field(at, q, _widened(kind, weight, scales, row, depth, scratch + 4 * q * depth))
            p = 0
            while p < panels:
                ahead = 4 * step * depth if p == 0 and kind == FLOAT32 else 0
                taken = _multiply(at, x + p * distance, distance, panels - p, depth, ahead, sums)
                for q in range(len(MANY)):
                    row, place = i + q % step, q // step * up
                    if row < last:
                        add = _added(kind, bias, _first_row(gate, inner, row, q // step))
                        for k in range(taken):
                            target = hidden + _VECTOR_BYTES * ((p + k) * line + place + row)
                            for t in range(LANES):
                                _store(target, t, _load(_FLOAT, sums + _VECTOR_BYTES * (q * taken + k), t) + add)
                p += taken
        for p in range(panels):
            target = hidden + _VECTOR_BYTES * (p * line + first)
            _activate(args, target, target + _VECTOR_BYTES * up, (last - first) * LANES)


@njit(error_model="numpy")
def _down(args: Any) -> None:
    blocks, block, kind = _field(args, BLOCKS), _field(args, BLOCK), _field(args, KIND)
    tasks, groups, order = _field(args, TASKS), _field(args, GROUPS), _field(args, ORDER)
    rows, depth, out = _field(args, WIDTH), _field(args, UP), _field(args, OUT)
    at, sums, places, turned, adds = _space(MANY), _space(_SUMS), _space(MANY), _space(MANY), _space(MANY)
    distance = _VECTOR_BYTES * _field(args, LINE)
    share, done = _take(args + 8 * SLOT), 0
    scratch = _field(args, SCRATCH) + share * _field(args, SCRATCH_BYTES)
    while True:
        task, done = _next_task(args, share, done)
        if task >= tasks:
            return
        expert = groups + (task // blocks) * (8 * EXPERT_FIELDS)
        weight, bias, scales = _field(expert, DOWN_WEIGHT), _field(expert, DOWN_BIAS), _field(expert, DOWN_SCALES)
        start, end = _field(expert, START), _field(expert, END)
        panels = -(-(end - start) // LANES)
        hidden = _field(args, HIDDEN) + _field(expert, FIRST_PANEL) * distance
        first = (task % blocks) * block
        last = min(rows, first + block)
        for i in range(first, last, len(MANY)):
            for q in range(len(MANY)):
                row = min(i + q, last - 1)
                _set_field(at, q, _widened(kind, weight, scales, row, depth, scratch + 4 * q * depth))
                _store(adds, q, _added(kind, bias, row))
            p = 0
            while p < panels:
                ahead = 4 * len(MANY) * depth if p == 0 and kind == FLOAT32 else 0
                taken = _multiply(at, hidden + p * distance, distance, panels - p, depth, ahead, sums)
                for k in range(taken):
                    for q in range(len(MANY)):
                        _set_field(places, q, sums + _VECTOR_BYTES * (q * taken + k))
                    _transpose(MANY, places, 0, turned)
                    pick = start + (p + k) * LANES
                    for t in range(min(LANES, end - pick)):
                        target = out + 4 * (_field(order, pick + t) * rows + i)
                        source = turned + 4 * t * len(MANY)
                        if last - i >= len(MANY):
                            for q in range(len(MANY)):
                                _store(target, q, _load(_FLOAT, source, q) + _load(_FLOAT, adds, q))
                        else:
                            for q in range(last - i):
                                _store(target, q, _load(_FLOAT, source, q) + _load(_FLOAT, adds, q))
                p += taken


@njit(error_model="numpy")
def _widen(args: Any) -> None:
    """A task is a block of weight rows of one matrix, which is that of an expert's second product."""
    block, depth, kind, out = _field(args, BLOCK), _field(args, UP), _field(args, KIND), _field(args, OUT)
    weight, scales = _field(_field(args, GROUPS), DOWN_WEIGHT), _field(_field(args, GROUPS), DOWN_SCALES)
    share, done = _take(args + 8 * SLOT), 0
    while True:
        task, done = _next_task(args, share, done)
        if task >= _field(args, TASKS):
            return
        for i in range(task * block, min(_field(args, WIDTH), (task + 1) * block)):
            _widened(kind, weight, scales, i, depth, out + 4 * depth * i)


def panels_pack(args):  # type: ignore[no-untyped-def]
    _pack(args)


def panels_up(args):  # type: ignore[no-untyped-def]
    _up(args)


def panels_down(args):  # type: ignore[no-untyped-def]
    _down(args)


def panels_widen(args):  # type: ignore[no-untyped-def]
    _widen(args)


@functools.cache
def compiled() -> tuple[int, int, int, int]:
    """Addresses of ``pack``, ``up``, ``down`` and ``widen``: ``void f(int64 address of the fields)``.

    Compiles them (seconds) unless numba's cache on disk has them.
    """
    return address_of(panels_pack), address_of(panels_up), address_of(panels_down), address_of(panels_widen)
