"""Products for few rows, compiled by numba: weights are read once from memory, in order, by all threads.

``up`` computes a layer's first products with their activation for all experts given, ``down`` the second ones,
``linear`` one product with bias.  Each is a function of one address: of a block of int64 ``fields``.  Threads take
blocks of weight rows from a shared counter, so a thread that the kernel interrupts delays one block only.  Sums are
float32; weights are float32, bfloat16 (as uint16) or float16 (as int16) and are widened as they are read.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import cfunc, njit, types
from numba.extending import intrinsic

from specmoe.compute.fields import (
    ALPHA,
    BIAS,
    BLOCK,
    BLOCKS,
    DOWN_BIAS,
    DOWN_WEIGHT,
    END,
    EXPERT_FIELDS,
    FIRST_BIAS,
    FIRST_WEIGHT,
    GATE,
    GELU,
    GELU_TANH,
    GROUPS,
    HIDDEN,
    INNER,
    INTERLEAVED,
    LIMIT,
    LINES,
    NUMBERS,
    OFFSET,
    OUT,
    PICKS,
    RELU_SQUARED,
    ROWS,
    SILU,
    START,
    TASKS,
    TOKENS,
    UNGATED,
    WEIGHT,
    WIDTH,
    X,
)

_FAST = {"reassoc", "contract", "nsz"}  # sums in any order; NaN and infinity survive
_FLOAT = np.float32(0)
_ROOT_HALF, _ROOT_2_OVER_PI = np.float32(math.sqrt(0.5)), np.float32(math.sqrt(2 / math.pi))


@intrinsic
def _load(context: Any, kind: Any, address: Any, index: Any) -> Any:
    """Element ``index`` of the array of ``kind`` at ``address``, as float32."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        single, word = ir.FloatType(), ir.IntType(32)
        element = single if kind == types.float32 else ir.IntType(16)
        start = builder.inttoptr(args[1], element.as_pointer())
        value = builder.load(builder.gep(start, [args[2]]))
        if kind == types.float32:
            return value
        if kind == types.uint16:
            return builder.bitcast(builder.shl(builder.zext(value, word), ir.Constant(word, 16)), single)
        return builder.fpext(builder.bitcast(value, ir.HalfType()), single)

    return types.float32(kind, address, index), generate


@intrinsic
def _store(context: Any, address: Any, index: Any, value: Any) -> Any:
    """Write element ``index`` of the float32 array at ``address``."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        start = builder.inttoptr(args[0], ir.FloatType().as_pointer())
        builder.store(args[2], builder.gep(start, [args[1]]))
        return context.get_dummy_value()

    return types.void(address, index, types.float32), generate


@intrinsic
def _field(context: Any, address: Any, index: Any) -> Any:
    """Element ``index`` of the int64 array at ``address``."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        start = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        return builder.load(builder.gep(start, [args[1]]))

    return types.int64(address, index), generate


@intrinsic
def _take(context: Any, address: Any) -> Any:
    """The int64 at ``address``, which is increased by one atomically."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        counter = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", counter, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(address), generate


@njit(fastmath=_FAST)
def _dots_4(kind: Any, v: Any, w: Any, a: Any, stride_b: Any, stride_c: Any, stride_d: Any, n: Any) -> Any:
    """Dot products of two weight rows with four input rows, at ``a`` and at distances from it."""
    v0 = v1 = v2 = v3 = w0 = w1 = w2 = w3 = _FLOAT
    b, c, d = a + stride_b, a + stride_c, a + stride_d
    for k in range(n):
        x, y = _load(kind, v, k), _load(kind, w, k)
        p, q, r, s = _load(_FLOAT, a, k), _load(_FLOAT, b, k), _load(_FLOAT, c, k), _load(_FLOAT, d, k)
        v0 += x * p
        v1 += x * q
        v2 += x * r
        v3 += x * s
        w0 += y * p
        w1 += y * q
        w2 += y * r
        w3 += y * s
    return v0, v1, v2, v3, w0, w1, w2, w3


@njit(fastmath=_FAST)
def _dots_2(kind: Any, v: Any, w: Any, a: Any, b: Any, n: Any) -> Any:
    v0 = v1 = w0 = w1 = _FLOAT
    for k in range(n):
        x, y, p, q = _load(kind, v, k), _load(kind, w, k), _load(_FLOAT, a, k), _load(_FLOAT, b, k)
        v0 += x * p
        v1 += x * q
        w0 += y * p
        w1 += y * q
    return v0, v1, w0, w1


@njit(fastmath=_FAST)
def _dots_1(kind: Any, v: Any, w: Any, a: Any, n: Any) -> Any:
    v0 = w0 = _FLOAT
    for k in range(n):
        p = _load(_FLOAT, a, k)
        v0 += _load(kind, v, k) * p
        w0 += _load(kind, w, k) * p
    return v0, w0


@njit(error_model="numpy")
def _activated(gate: Any, numbers: Any, x: Any) -> Any:
    name = gate & 15
    if name == SILU:
        return x / (np.float32(1) + math.exp(-_load(_FLOAT, numbers, ALPHA) * x))
    if name == GELU:
        return np.float32(0.5) * x * (np.float32(1) + math.erf(x * _ROOT_HALF))
    if name == GELU_TANH:
        return (
            np.float32(0.5) * x * (np.float32(1) + math.tanh(_ROOT_2_OVER_PI * (x + np.float32(0.044715) * x * x * x)))
        )
    positive = np.float32(0) if x < 0 else x
    return positive * positive if name == RELU_SQUARED else positive


@njit(error_model="numpy")
def _put(args: Any, bias: Any, kind: Any, row: Any, i: Any, v: Any, w: Any, j: Any, a: Any, b: Any) -> Any:
    """Activate a pick's products with weight rows ``v`` and ``w`` and write them as its inner row ``i`` (``j``)."""
    gate, numbers, start = _field(args, GATE), _field(args, NUMBERS), row * _field(args, INNER)
    hidden = _field(args, HIDDEN)
    if bias:
        a += _load(kind, bias, v)
        b += _load(kind, bias, w)
    if gate & UNGATED:
        _store(hidden, start + i, _activated(gate, numbers, a))
        _store(hidden, start + j, _activated(gate, numbers, b))
        return
    limit = _load(_FLOAT, numbers, LIMIT)
    a = limit if a > limit else a
    b = limit if b > limit else (-limit if b < -limit else b)
    _store(hidden, start + i, _activated(gate, numbers, a) * (b + _load(_FLOAT, numbers, OFFSET)))


@njit(error_model="numpy")
def _up(kind: Any, size: Any, args: Any) -> None:
    blocks, block, tokens = _field(args, BLOCKS), _field(args, BLOCK), _field(args, TOKENS)
    width, inner, gate = _field(args, WIDTH), _field(args, INNER), _field(args, GATE)
    x, line = _field(args, X), 4 * width
    step = 2 if gate & UNGATED else 1
    while True:
        task = _take(args)
        if task >= _field(args, TASKS):
            return
        expert = _field(args, GROUPS) + (task // blocks) * (8 * EXPERT_FIELDS)
        weight, bias, end = _field(expert, FIRST_WEIGHT), _field(expert, FIRST_BIAS), _field(expert, END)
        first = (task % blocks) * block
        last = min(inner, first + block)
        for i in range(first, last, step):
            j = min(i + 1, last - 1)
            v, w = (i, j) if gate & UNGATED else ((2 * i, 2 * i + 1) if gate & INTERLEAVED else (i, inner + i))
            at_v, at_w = weight + v * width * size, weight + w * width * size
            r = _field(expert, START)
            while r + 4 <= end:
                p = _field(tokens, r)
                q, s, t = _field(tokens, r + 1) - p, _field(tokens, r + 2) - p, _field(tokens, r + 3) - p
                a, b, c, d, e, f, g, h = _dots_4(kind, at_v, at_w, x + p * line, q * line, s * line, t * line, width)
                _put(args, bias, kind, r, i, v, w, j, a, e)
                _put(args, bias, kind, r + 1, i, v, w, j, b, f)
                _put(args, bias, kind, r + 2, i, v, w, j, c, g)
                _put(args, bias, kind, r + 3, i, v, w, j, d, h)
                r += 4
            if r + 2 <= end:
                p, q = _field(tokens, r), _field(tokens, r + 1)
                a, b, c, d = _dots_2(kind, at_v, at_w, x + p * line, x + q * line, width)
                _put(args, bias, kind, r, i, v, w, j, a, c)
                _put(args, bias, kind, r + 1, i, v, w, j, b, d)
                r += 2
            if r < end:
                a, b = _dots_1(kind, at_v, at_w, x + _field(tokens, r) * line, width)
                _put(args, bias, kind, r, i, v, w, j, a, b)


@njit(error_model="numpy")
def _rows(
    kind: Any, size: Any, weight: Any, bias: Any, x: Any, n: Any, out: Any, lines: Any, width: Any, i: Any, j: Any
) -> None:
    """Output rows ``i`` and ``j`` of a product for ``n`` input rows [n, width] at ``x``; ``lines``: the start of each
    input row's output, as an index into ``out``."""
    v, w, line = weight + i * width * size, weight + j * width * size, 4 * width
    add_v = add_w = _FLOAT
    if bias:
        add_v, add_w = _load(kind, bias, i), _load(kind, bias, j)
    r = 0
    while r + 4 <= n:
        a, b, c, d, e, f, g, h = _dots_4(kind, v, w, x + r * line, line, 2 * line, 3 * line, width)
        p, q, s, t = _field(lines, r), _field(lines, r + 1), _field(lines, r + 2), _field(lines, r + 3)
        _store(out, p + i, a + add_v)
        _store(out, q + i, b + add_v)
        _store(out, s + i, c + add_v)
        _store(out, t + i, d + add_v)
        _store(out, p + j, e + add_w)
        _store(out, q + j, f + add_w)
        _store(out, s + j, g + add_w)
        _store(out, t + j, h + add_w)
        r += 4
    if r + 2 <= n:
        a, b, c, d = _dots_2(kind, v, w, x + r * line, x + r * line + line, width)
        p, q = _field(lines, r), _field(lines, r + 1)
        _store(out, p + i, a + add_v)
        _store(out, q + i, b + add_v)
        _store(out, p + j, c + add_w)
        _store(out, q + j, d + add_w)
        r += 2
    if r < n:
        a, b = _dots_1(kind, v, w, x + r * line, width)
        _store(out, _field(lines, r) + i, a + add_v)
        _store(out, _field(lines, r) + j, b + add_w)


@njit(error_model="numpy")
def _down(kind: Any, size: Any, args: Any) -> None:
    blocks, block = _field(args, BLOCKS), _field(args, BLOCK)
    width, inner = _field(args, WIDTH), _field(args, INNER)
    while True:
        task = _take(args)
        if task >= _field(args, TASKS):
            return
        expert = _field(args, GROUPS) + (task // blocks) * (8 * EXPERT_FIELDS)
        weight, bias, start = _field(expert, DOWN_WEIGHT), _field(expert, DOWN_BIAS), _field(expert, START)
        count = _field(expert, END) - start
        x, lines = _field(args, HIDDEN) + 4 * start * inner, _field(args, PICKS) + 8 * start
        first = (task % blocks) * block
        last = min(width, first + block)
        for i in range(first, last, 2):
            _rows(kind, size, weight, bias, x, count, _field(args, OUT), lines, inner, i, min(i + 1, last - 1))


@njit(error_model="numpy")
def _linear(kind: Any, size: Any, args: Any) -> None:
    block, width, rows = _field(args, BLOCK), _field(args, INNER), _field(args, WIDTH)
    while True:
        task = _take(args)
        if task >= _field(args, TASKS):
            return
        last = min(rows, (task + 1) * block)
        for i in range(task * block, last, 2):
            j = min(i + 1, last - 1)
            x, count, weight, bias = _field(args, X), _field(args, ROWS), _field(args, WEIGHT), _field(args, BIAS)
            _rows(kind, size, weight, bias, x, count, _field(args, OUT), _field(args, LINES), width, i, j)


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


def linear_float32(args):  # type: ignore[no-untyped-def]
    _linear(np.float32(0), 4, args)


def linear_bfloat16(args):  # type: ignore[no-untyped-def]
    _linear(np.uint16(0), 2, args)


def linear_float16(args):  # type: ignore[no-untyped-def]
    _linear(np.int16(0), 2, args)


_SOURCES = {
    torch.float32: (up_float32, down_float32, linear_float32),
    torch.bfloat16: (up_bfloat16, down_bfloat16, linear_bfloat16),
    torch.float16: (up_float16, down_float16, linear_float16),
}
_compiled: dict[str, Any] = {}  # the functions live as long as the process, since others hold their addresses


@functools.cache
def compiled(dtype: torch.dtype) -> tuple[int, int, int]:
    """Addresses of ``up``, ``down`` and ``linear`` for weights of ``dtype``: ``void f(int64 address of the fields)``.

    Compiles them (seconds) unless numba's cache on disk has them.

    Raises:
        KeyError: another dtype.
    """
    for source in _SOURCES[dtype]:
        _compiled[source.__name__] = cfunc(types.void(types.intp), cache=True)(source)
    first, second, third = (int(_compiled[source.__name__].address) for source in _SOURCES[dtype])
    return first, second, third
