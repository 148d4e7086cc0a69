"""Products for few rows, compiled by numba: weights are read once from memory, in order, by all threads.

``up`` computes a layer's first products with their activation for all experts given, ``down`` the second ones, or any
product with a bias.  Each is a function of one address: of a block of int64 ``fields``.  Threads take blocks of weight
rows from a shared counter, so a thread that the kernel interrupts delays one block only.  Sums are float32; weights are
float32, bfloat16 (as uint16) or float16 (as int16) and are widened as they are read.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from numba import njit

from specmoe.compute.activation import _activate
from specmoe.compute.entry import address_of
from specmoe.compute.fields import (
    BLOCK,
    BLOCKS,
    DOWN_BIAS,
    DOWN_WEIGHT,
    END,
    EXPERT_FIELDS,
    FIRST_BIAS,
    FIRST_WEIGHT,
    GATE,
    GROUPS,
    HIDDEN,
    INNER,
    INTERLEAVED,
    LINE,
    ORDER,
    OUT,
    SLOT,
    START,
    TASKS,
    TOP_K,
    UNGATED,
    UP,
    WIDTH,
    X,
)
from specmoe.compute.scalars import _FLOAT, _field, _load, _next_task, _set_field, _store, _take
from specmoe.compute.vectors import FOUR, ONE, TWO, _dots, _space

AHEAD_BYTES = 1024
"""How far ahead weights are fetched: 30 % more per second than what the processor fetches ahead by itself."""


@njit(error_model="numpy")
def _multiply(kind: Any, at: Any, xs: Any, left: Any, n: Any, ahead: Any, sums: Any) -> Any:
    """Dot products of the weight rows at ``at`` with four, two or one of the ``left`` input rows at ``xs``; returns
    how many."""
    if left >= 4:
        _dots(kind, TWO, FOUR, at, xs, n, ahead, sums)
        return 4
    if left >= 2:
        _dots(kind, TWO, TWO, at, xs, n, ahead, sums)
        return 2
    _dots(kind, TWO, ONE, at, xs, n, ahead, sums)
    return 1


@njit(error_model="numpy")
def _first_row(gate: Any, inner: Any, i: Any, is_gated: Any) -> Any:
    """The row of the first weights that belongs to inner row ``i``: of its gate, or of the number that is gated."""
    if gate & INTERLEAVED:
        return 2 * i + is_gated
    return i + inner * is_gated


@njit(error_model="numpy")
def _up(kind: Any, size: Any, args: Any) -> None:
    blocks, block, order, top_k = _field(args, BLOCKS), _field(args, BLOCK), _field(args, ORDER), _field(args, TOP_K)
    width, inner, gate = _field(args, WIDTH), _field(args, INNER), _field(args, GATE)
    x, up, line, hidden = _field(args, X), _field(args, UP), _field(args, LINE), _field(args, HIDDEN)
    tasks, groups = _field(args, TASKS), _field(args, GROUPS)
    at, xs, sums = _space(FOUR), _space(FOUR), _space(FOUR)
    share, done = _take(args + 8 * SLOT), 0
    while True:
        task, done = _next_task(args, share, done)
        if task >= tasks:
            return
        expert = groups + (task // blocks) * (8 * EXPERT_FIELDS)
        weight, bias = _field(expert, FIRST_WEIGHT), _field(expert, FIRST_BIAS)
        start, end = _field(expert, START), _field(expert, END)
        first = (task % blocks) * block
        last = min(inner, first + block)
        half = (last - first + 1) // 2
        for i in range(first, first + half if gate & UNGATED else last):
            if gate & UNGATED:  # rows of both halves of the block at once
                v = i
                w = min(i + half, last - 1)
                place = w
            else:
                v, w, place = _first_row(gate, inner, i, 0), _first_row(gate, inner, i, 1), up + i
            _set_field(at, 0, weight + v * width * size)
            _set_field(at, 1, weight + w * width * size)
            add_v = add_w = _FLOAT
            if bias:
                add_v, add_w = _load(kind, bias, v), _load(kind, bias, w)
            r = start
            while r < end:
                for k in range(min(4, end - r)):
                    _set_field(xs, k, x + _field(order, r + k) // top_k * 4 * width)
                taken = _multiply(kind, at, xs, end - r, width, AHEAD_BYTES if r == start else 0, sums)
                for k in range(taken):
                    target = hidden + 4 * (r + k) * line
                    _store(target, i, _load(_FLOAT, sums, 2 * k) + add_v)
                    _store(target, place, _load(_FLOAT, sums, 2 * k + 1) + add_w)
                r += taken
        for r in range(start, end):
            target = hidden + 4 * (r * line + first)
            _activate(args, target, target + 4 * up, last - first)


@njit(error_model="numpy")
def _down(kind: Any, size: Any, args: Any) -> None:
    blocks, block, tasks, groups = _field(args, BLOCKS), _field(args, BLOCK), _field(args, TASKS), _field(args, GROUPS)
    rows, width, line, out = _field(args, WIDTH), _field(args, UP), 4 * _field(args, LINE), _field(args, OUT)
    hidden, order = _field(args, HIDDEN), _field(args, ORDER)
    at, xs, sums = _space(FOUR), _space(FOUR), _space(FOUR)
    share, done = _take(args + 8 * SLOT), 0
    while True:
        task, done = _next_task(args, share, done)
        if task >= tasks:
            return
        expert = groups + (task // blocks) * (8 * EXPERT_FIELDS)
        weight, bias = _field(expert, DOWN_WEIGHT), _field(expert, DOWN_BIAS)
        start, end = _field(expert, START), _field(expert, END)
        first = (task % blocks) * block
        last = min(rows, first + block)
        half = (last - first + 1) // 2
        for v in range(first, first + half):  # rows of both halves of the block at once
            w = min(v + half, last - 1)
            _set_field(at, 0, weight + v * width * size)
            _set_field(at, 1, weight + w * width * size)
            add_v = add_w = _FLOAT
            if bias:
                add_v, add_w = _load(kind, bias, v), _load(kind, bias, w)
            r = start
            while r < end:
                for k in range(min(4, end - r)):
                    _set_field(xs, k, hidden + (r + k) * line)
                taken = _multiply(kind, at, xs, end - r, width, AHEAD_BYTES if r == start else 0, sums)
                for k in range(taken):
                    target = out + 4 * _field(order, r + k) * rows
                    _store(target, v, _load(_FLOAT, sums, 2 * k) + add_v)
                    _store(target, w, _load(_FLOAT, sums, 2 * k + 1) + add_w)
                r += taken


def up_float32(args):  # type: ignore[no-untyped-def]
    _up(np.float32(0), 4, args)


def up_bfloat16(args):  # type: ignore[no-untyped-def]
    _up(np.uint16(0), 2, args)


def up_float16(args):  # type: ignore[no-untyped-def]
    _up(np.int16(0), 2, args)


def down_float32(args):  # type: ignore[no-untyped-def]
    _down(np.float32(0), 4, args)


def down_bfloat16(args):  # type: ignore[no-untyped-def]
    _down(np.uint16(0), 2, args)


def down_float16(args):  # type: ignore[no-untyped-def]
    _down(np.int16(0), 2, args)


_SOURCES = {
    torch.float32: (up_float32, down_float32),
    torch.bfloat16: (up_bfloat16, down_bfloat16),
    torch.float16: (up_float16, down_float16),
}


@functools.cache
def compiled(dtype: torch.dtype) -> tuple[int, int]:
    """Addresses of ``up`` and ``down`` for weights of ``dtype``: ``void f(int64 address of the fields)``.

    Compiles them (seconds) unless numba's cache on disk has them.

    Raises:
        KeyError: another dtype.
    """
    up, down = _SOURCES[dtype]
    return address_of(up), address_of(down)
