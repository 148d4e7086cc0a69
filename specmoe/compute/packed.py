"""Products for few rows with low-bit weights, compiled by numba: codes are unpacked in registers.

The layout is that of ``specmoe.compute.codes``; arguments and sharing of work are those of
``specmoe.compute.streaming``.  Input rows are float32, padded with zeros to whole groups of 32.

The number of bits is the length of a tuple, which the compiler sees; the vectors have 16 elements, which LLVM splits
where registers are shorter.
"""

from __future__ import annotations

import functools
from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from specmoe.compute.activation import _activate
from specmoe.compute.codes import GROUP, zero_of
from specmoe.compute.entry import address_of
from specmoe.compute.fields import (
    BLOCK,
    BLOCKS,
    DEPTH,
    DOWN_BIAS,
    DOWN_SCALES,
    DOWN_WEIGHT,
    END,
    EXPERT_FIELDS,
    FIRST_BIAS,
    FIRST_SCALES,
    FIRST_WEIGHT,
    GATE,
    GROUPS,
    HIDDEN,
    INNER,
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
from specmoe.compute.scalars import _FLOAT, _field, _load, _next_task, _store, _take
from specmoe.compute.streaming import _first_row

_LANES = 16
_FAST = ("reassoc", "contract", "nsz")
_SINGLE, _WORD, _BYTE = ir.FloatType(), ir.IntType(32), ir.IntType(8)
_SINGLES, _WORDS = ir.VectorType(_SINGLE, _LANES), ir.VectorType(_WORD, _LANES)
_TWO, _THREE, _FOUR, _EIGHT = (0,) * 2, (0,) * 3, (0,) * 4, (0,) * 8


def _at(builder: Any, address: Any, kind: Any, align: int) -> Any:
    """The value of ``kind`` at an address."""
    return builder.load(builder.inttoptr(address, kind.as_pointer()), align=align)


def _plus(builder: Any, address: Any, nbytes: int) -> Any:
    return builder.add(address, ir.Constant(address.type, nbytes))


def _splat(builder: Any, value: Any, lanes: int = _LANES) -> Any:
    """A vector of equal elements."""
    kind = ir.VectorType(value.type, lanes)
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(_WORD, 0))
    return builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(_WORD, lanes), [0] * lanes))


def _words(values: list[int]) -> Any:
    return ir.Constant(_WORDS, values)


def _codes(builder: Any, bits: int, address: Any) -> tuple[Any, Any]:
    """Codes 0 .. 15 and 16 .. 31 of the group at an address, as int32."""
    sixteen = ir.VectorType(_BYTE, _LANES)
    if bits == 8:
        parts = (_at(builder, address, sixteen, 1), _at(builder, _plus(builder, address, _LANES), sixteen, 1))
        return builder.zext(parts[0], _WORDS), builder.zext(parts[1], _WORDS)
    if bits == 4:
        pairs = builder.zext(_at(builder, address, sixteen, 1), _WORDS)
        return builder.and_(pairs, _words([15] * _LANES)), builder.lshr(pairs, _words([4] * _LANES))
    eight = _at(builder, address, ir.VectorType(_BYTE, 8), 1)
    twice = builder.zext(builder.shuffle_vector(eight, eight, _words([*range(8), *range(8)])), _WORDS)
    found = []
    for half in range(2):
        low = builder.and_(builder.lshr(twice, _words([4 * half] * 8 + [4 * half + 2] * 8)), _words([3] * _LANES))
        if bits == 3:
            high = _splat(builder, _at(builder, _plus(builder, address, 8), _WORD, 1))
            high = builder.lshr(high, _words(list(range(_LANES * half, _LANES * (half + 1)))))
            high = builder.shl(builder.and_(high, _words([1] * _LANES)), _words([2] * _LANES))
            low = builder.or_(low, high)
        found.append(low)
    return found[0], found[1]


def _weights(builder: Any, bits: int, codes: Any, scales: Any, group: Any) -> list[Any]:
    """The 32 weights of a row's group, as two vectors."""
    half = ir.IntType(16)
    start = builder.add(codes, builder.mul(group, ir.Constant(group.type, 4 * bits)))
    stored = _at(builder, builder.add(scales, builder.mul(group, ir.Constant(group.type, 2))), half, 2)
    scale = builder.bitcast(builder.shl(builder.zext(stored, _WORD), ir.Constant(_WORD, 16)), _SINGLE)
    offset = builder.fmul(scale, ir.Constant(_SINGLE, -zero_of(bits)))
    scale, offset = _splat(builder, scale), _splat(builder, offset)
    return [
        builder.fadd(builder.fmul(builder.sitofp(part, _SINGLES), scale, flags=_FAST), offset, flags=_FAST)
        for part in _codes(builder, bits, start)
    ]


def _sum(builder: Any, vector: Any) -> Any:
    """The sum of a vector's elements."""
    lanes = _LANES
    while lanes > 1:
        lanes //= 2
        low, high = (
            builder.shuffle_vector(vector, vector, ir.Constant(ir.VectorType(_WORD, lanes), list(places)))
            for places in (range(lanes), range(lanes, 2 * lanes))
        )
        vector = builder.fadd(low, high, flags=_FAST)
    return builder.extract_element(vector, ir.Constant(_WORD, 0))


@intrinsic
def _dots(context: Any, bits: Any, codes: Any, scales: Any, rows: Any, groups: Any) -> Any:
    """Dot products of the weight row at ``codes`` and ``scales`` with the input rows at a tuple of addresses."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        addresses = cgutils.unpack_tuple(builder, args[3], rows.count)
        zero = ir.Constant(_SINGLES, [0.0] * _LANES)
        sums = [[cgutils.alloca_once_value(builder, zero) for _ in range(2)] for _ in addresses]
        with cgutils.for_range(builder, args[4]) as loop:
            weights = _weights(builder, bits.count, args[1], args[2], loop.index)
            place = builder.mul(loop.index, ir.Constant(loop.index.type, 4 * GROUP))
            for address, parts in zip(addresses, sums, strict=True):
                for half, (weight, part) in enumerate(zip(weights, parts, strict=True)):
                    x = _at(builder, _plus(builder, builder.add(address, place), 4 * _LANES * half), _SINGLES, 4)
                    product = builder.fmul(weight, x, flags=_FAST)
                    builder.store(builder.fadd(builder.load(part), product, flags=_FAST), part)
        totals = [_sum(builder, builder.fadd(builder.load(a), builder.load(b), flags=_FAST)) for a, b in sums]
        return cgutils.pack_array(builder, totals)

    return types.UniTuple(types.float32, rows.count)(bits, codes, scales, rows, groups), generate


@intrinsic
def _write(context: Any, bits: Any, codes: Any, scales: Any, group: Any, address: Any) -> Any:
    """Write the 32 weights of a row's group at an address, as float32."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _, start, scale, index, out = args
        for half, weights in enumerate(_weights(builder, bits.count, start, scale, index)):
            target = builder.inttoptr(_plus(builder, out, 4 * _LANES * half), _SINGLES.as_pointer())
            builder.store(weights, target, align=4)
        return context.get_dummy_value()

    return types.void(bits, codes, scales, group, address), generate


@njit(error_model="numpy")
def _up(bits: Any, args: Any) -> None:
    blocks, block, order, top_k = _field(args, BLOCKS), _field(args, BLOCK), _field(args, ORDER), _field(args, TOP_K)
    length, units, gate = _field(args, DEPTH) // GROUP, _field(args, INNER), _field(args, GATE)
    up, line = _field(args, UP), _field(args, LINE)
    x, x_line, row_bytes = _field(args, X), 4 * GROUP * length, 4 * len(bits) * length
    parts = 1 if gate & UNGATED else 2
    share, done = _take(args + 8 * SLOT), 0
    while True:
        task, done = _next_task(args, share, done)
        if task >= _field(args, TASKS):
            return
        expert = _field(args, GROUPS) + (task // blocks) * (8 * EXPERT_FIELDS)
        weight, scales = _field(expert, FIRST_WEIGHT), _field(expert, FIRST_SCALES)
        bias, start, end = _field(expert, FIRST_BIAS), _field(expert, START), _field(expert, END)
        first = (task % blocks) * block
        last = min(units, first + block)
        for i in range(first, last):
            for q in range(parts):
                row = _first_row(gate, units, i, q)
                codes, scale = weight + row * row_bytes, scales + 2 * row * length
                add = _load(_FLOAT, bias, row) if bias else _FLOAT
                target = _field(args, HIDDEN) + 4 * (q * up + i)
                r = start
                while r + 4 <= end:
                    rows = (
                        x + _field(order, r) // top_k * x_line,
                        x + _field(order, r + 1) // top_k * x_line,
                        x + _field(order, r + 2) // top_k * x_line,
                        x + _field(order, r + 3) // top_k * x_line,
                    )
                    a = _dots(bits, codes, scale, rows, length)
                    for k in range(4):
                        _store(target, (r + k) * line, a[k] + add)
                    r += 4
                if r + 2 <= end:
                    pair = (x + _field(order, r) // top_k * x_line, x + _field(order, r + 1) // top_k * x_line)
                    b = _dots(bits, codes, scale, pair, length)
                    _store(target, r * line, b[0] + add)
                    _store(target, (r + 1) * line, b[1] + add)
                    r += 2
                if r < end:
                    c = _dots(bits, codes, scale, (x + _field(order, r) // top_k * x_line,), length)
                    _store(target, r * line, c[0] + add)
        for r in range(start, end):
            target = _field(args, HIDDEN) + 4 * (r * line + first)
            _activate(args, target, target + 4 * up, last - first)


@njit(error_model="numpy")
def _down(bits: Any, args: Any) -> None:
    blocks, block, width = _field(args, BLOCKS), _field(args, BLOCK), _field(args, WIDTH)
    out, line = _field(args, OUT), 4 * _field(args, LINE)
    length = _field(args, UP) // GROUP
    share, done = _take(args + 8 * SLOT), 0
    while True:
        task, done = _next_task(args, share, done)
        if task >= _field(args, TASKS):
            return
        expert = _field(args, GROUPS) + (task // blocks) * (8 * EXPERT_FIELDS)
        weight, scales = _field(expert, DOWN_WEIGHT), _field(expert, DOWN_SCALES)
        bias, end, order = _field(expert, DOWN_BIAS), _field(expert, END), _field(args, ORDER)
        first = (task % blocks) * block
        last = min(width, first + block)
        for i in range(first, last):
            codes, scale = weight + i * 4 * len(bits) * length, scales + 2 * i * length
            add = _load(_FLOAT, bias, i) if bias else _FLOAT
            r = _field(expert, START)
            x = _field(args, HIDDEN) + r * line
            while r + 4 <= end:
                a = _dots(bits, codes, scale, (x, x + line, x + 2 * line, x + 3 * line), length)
                for k in range(4):
                    _store(out, _field(order, r + k) * width + i, a[k] + add)
                r, x = r + 4, x + 4 * line
            if r + 2 <= end:
                b = _dots(bits, codes, scale, (x, x + line), length)
                _store(out, _field(order, r) * width + i, b[0] + add)
                _store(out, _field(order, r + 1) * width + i, b[1] + add)
                r, x = r + 2, x + 2 * line
            if r < end:
                c = _dots(bits, codes, scale, (x,), length)
                _store(out, _field(order, r) * width + i, c[0] + add)


def up_2(args):  # type: ignore[no-untyped-def]
    _up(_TWO, args)


def up_3(args):  # type: ignore[no-untyped-def]
    _up(_THREE, args)


def up_4(args):  # type: ignore[no-untyped-def]
    _up(_FOUR, args)


def up_8(args):  # type: ignore[no-untyped-def]
    _up(_EIGHT, args)


def down_2(args):  # type: ignore[no-untyped-def]
    _down(_TWO, args)


def down_3(args):  # type: ignore[no-untyped-def]
    _down(_THREE, args)


def down_4(args):  # type: ignore[no-untyped-def]
    _down(_FOUR, args)


def down_8(args):  # type: ignore[no-untyped-def]
    _down(_EIGHT, args)


_SOURCES = {
    2: (up_2, down_2),
    3: (up_3, down_3),
    4: (up_4, down_4),
    8: (up_8, down_8),
}


@functools.cache
def compiled(bits: int) -> tuple[int, int]:
    """Addresses of ``up`` and ``down`` for codes of ``bits``: ``void f(int64 address of the fields)``.

    Compiles them (seconds) unless numba's cache on disk has them.

    Raises:
        KeyError: another number of bits.
    """
    up, down = _SOURCES[bits]
    return address_of(up), address_of(down)
