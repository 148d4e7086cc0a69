"""Vector products for functions compiled by numba, as LLVM instructions on whole registers.

The compiler's own vectors have 256 bits at most on Intel; these have the widest that the processor has.  Arguments are
addresses (int64); a ``rows`` argument is the address of int64 addresses, one for each row.  The length of a tuple says
how many rows, so that the compiler sees it.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic

_IS_WIDE = "+avx512f" in cpu_target.target_context.codegen().magic_tuple()[2]
LANES = 16 if _IS_WIDE else 8
"""Float32 elements of a vector."""
MANY = (0,) * (8 if _IS_WIDE else 4)
"""As many weight rows are multiplied at once with up to three panels; accumulators fill three quarters of them."""
ONE, TWO, THREE, FOUR = ((0,) * n for n in (1, 2, 3, 4))
_UNROLLED, _UNROLLED_PANELS = 2, 4
_LINE = 64  # bytes of a line of the cache
_CONTRACT = ("contract",)
_SINGLE, _WORD, _LONG = ir.FloatType(), ir.IntType(32), ir.IntType(64)
_VECTOR = ir.VectorType(_SINGLE, LANES)


def _plus(builder: Any, address: Any, nbytes: int) -> Any:
    return builder.add(address, ir.Constant(address.type, nbytes))


def _at(builder: Any, address: Any, kind: Any, align: int = 4) -> Any:
    """The value of ``kind`` at an address."""
    return builder.load(builder.inttoptr(address, kind.as_pointer()), align=align)


def _put_at(builder: Any, value: Any, address: Any) -> None:
    builder.store(value, builder.inttoptr(address, value.type.as_pointer()), align=4)


def _addresses(builder: Any, start: Any, count: int) -> list[Any]:
    return [_at(builder, _plus(builder, start, 8 * i), _LONG, 8) for i in range(count)]


def _size(kind: Any) -> int:
    return 4 if kind == types.float32 else 2


def _single(builder: Any, kind: Any, address: Any, vector: int = 0) -> Any:
    """The element of ``kind`` at an address, or as many as ``vector`` says, as float32."""

    def shape(element: Any) -> Any:
        return ir.VectorType(element, vector) if vector else element

    if kind == types.float32:
        return _at(builder, address, shape(_SINGLE))
    stored = _at(builder, address, shape(ir.IntType(16)), 2)
    if kind == types.uint16:
        bits = ir.Constant(shape(_WORD), [16] * vector if vector else 16)
        return builder.bitcast(builder.shl(builder.zext(stored, shape(_WORD)), bits), shape(_SINGLE))
    return builder.fpext(builder.bitcast(stored, shape(ir.HalfType())), shape(_SINGLE))


def _shuffled(builder: Any, a: Any, b: Any, places: list[int]) -> Any:
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_WORD, len(places)), places))


def _splat(builder: Any, value: Any) -> Any:
    """A vector of equal elements."""
    first = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), value, ir.Constant(_WORD, 0))
    return _shuffled(builder, first, first, [0] * LANES)


def _fused(builder: Any, total: Any, a: Any, b: Any) -> None:
    """Add the product of two vectors to the vector at ``total``."""
    product = builder.fmul(a, b, flags=_CONTRACT)
    builder.store(builder.fadd(builder.load(total), product, flags=_CONTRACT), total)


def _prefetch(builder: Any, address: Any) -> None:
    """Ask for the cache line at an address, which need not exist."""
    kind = ir.FunctionType(ir.VoidType(), [ir.IntType(8).as_pointer(), _WORD, _WORD, _WORD])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    pointer = builder.inttoptr(address, ir.IntType(8).as_pointer())
    builder.call(function, [pointer, *(ir.Constant(_WORD, n) for n in (0, 3, 1))])  # to read, into every cache, data


def _totals(builder: Any, vectors: list[Any]) -> Any:
    """A vector of the sums of as many vectors, a power of two; the order of additions is the same for any number."""

    def folded(a: Any, b: Any, low: list[int], half: int) -> Any:
        high = [place + half for place in low]
        return builder.fadd(_shuffled(builder, a, b, low), _shuffled(builder, a, b, high), flags=_CONTRACT)

    held, width = 1, LANES  # vectors whose parts one vector holds, and lanes of each
    while width > 1:
        half = width // 2
        low = [first * width + i for first in range(held) for i in range(half)]
        if len(vectors) > 1:
            both = [*low, *(LANES + place for place in low)]
            vectors = [folded(a, b, both, half) for a, b in zip(vectors[::2], vectors[1::2], strict=True)]
            held *= 2
        else:
            vectors = [folded(vectors[0], vectors[0], low, half)]
        width = half
    return vectors[0]


@intrinsic
def _space(context: Any, count: Any) -> Any:
    """The address of memory for vectors that lasts until the calling function returns, a vector per element of a
    tuple."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        memory = cgutils.alloca_once(builder, ir.ArrayType(_VECTOR, count.count))
        memory.align = 64
        return builder.ptrtoint(memory, _LONG)

    return types.int64(count), generate


@intrinsic
def _dots(context: Any, kind: Any, weights: Any, rows: Any, at: Any, xs: Any, n: Any, ahead: Any, out: Any) -> Any:
    """Write the dot products of weight rows of ``kind`` (as many as ``weights``, at ``at``) and float32 rows (as many
    as ``rows``, at ``xs``) of ``n`` elements to ``out`` [rows, weights].

    Weights ``ahead`` bytes further are fetched into the cache.  A dot product has the same bits for any number of rows.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        starts = _addresses(builder, args[3], weights.count)
        inputs = _addresses(builder, args[4], rows.count)
        zero = ir.Constant(_VECTOR, [0.0] * LANES)
        sums = [[cgutils.alloca_once_value(builder, zero) for _ in starts] for _ in inputs]
        size, lanes = _size(kind), ir.Constant(_LONG, LANES)

        def step(index: Any) -> None:
            place = builder.mul(index, ir.Constant(_LONG, size * LANES))
            found = [_single(builder, kind, builder.add(start, place), LANES) for start in starts]
            place = builder.mul(index, ir.Constant(_LONG, 4 * LANES))
            for x, line in zip(inputs, sums, strict=True):
                values = _at(builder, builder.add(x, place), _VECTOR)
                for weight, total in zip(found, line, strict=True):
                    _fused(builder, total, weight, values)

        unrolled = ir.Constant(_LONG, _UNROLLED)
        whole = builder.sdiv(args[5], lanes)
        turns = builder.sdiv(whole, unrolled)
        with cgutils.for_range(builder, turns) as loop:
            first = builder.mul(loop.index, unrolled)
            place = builder.add(builder.mul(first, ir.Constant(_LONG, size * LANES)), args[6])
            for start in starts:
                for nbytes in range(0, _UNROLLED * size * LANES, _LINE):
                    _prefetch(builder, _plus(builder, builder.add(start, place), nbytes))
            for i in range(_UNROLLED):
                step(_plus(builder, first, i))
        with cgutils.for_range(builder, whole, start=builder.mul(turns, unrolled)) as loop:
            step(loop.index)
        with cgutils.for_range(builder, args[5], start=builder.mul(whole, lanes)) as loop:
            place, first = builder.mul(loop.index, ir.Constant(_LONG, size)), ir.Constant(_WORD, 0)
            single = [_single(builder, kind, builder.add(start, place)) for start in starts]
            place = builder.mul(loop.index, ir.Constant(_LONG, 4))
            for x, line in zip(inputs, sums, strict=True):
                value = builder.insert_element(zero, _at(builder, builder.add(x, place), _SINGLE), first)
                for weight, total in zip(single, line, strict=True):
                    _fused(builder, total, builder.insert_element(zero, weight, first), value)
        totals = _totals(builder, [builder.load(total) for line in sums for total in line])
        _put_at(builder, totals, args[7])
        return context.get_dummy_value()

    return types.void(kind, weights, rows, at, xs, n, ahead, out), generate


@intrinsic
def _widen_row(context: Any, kind: Any, row: Any, n: Any, out: Any) -> Any:
    """Write ``n`` elements of ``kind`` as float32."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        size, lanes = _size(kind), ir.Constant(_LONG, LANES)
        whole = builder.sdiv(args[2], lanes)

        def copy(index: Any, elements: int) -> None:
            source = builder.add(args[1], builder.mul(index, ir.Constant(_LONG, size * (elements or 1))))
            target = builder.add(args[3], builder.mul(index, ir.Constant(_LONG, 4 * (elements or 1))))
            if elements:
                _prefetch(builder, _plus(builder, source, 1024))
            _put_at(builder, _single(builder, kind, source, elements), target)

        with cgutils.for_range(builder, whole) as loop:
            copy(loop.index, LANES)
        with cgutils.for_range(builder, args[2], start=builder.mul(whole, lanes)) as loop:
            copy(loop.index, 0)
        return context.get_dummy_value()

    return types.void(kind, row, n, out), generate


@intrinsic
def _panel_products(
    context: Any, weights: Any, panels: Any, at: Any, x: Any, distance: Any, n: Any, ahead: Any, out: Any
) -> Any:
    """Write the products of float32 weight rows (as many as ``weights``, at ``at``) with panels [n, LANES] (as many as
    ``panels``, the first at ``x``, ``distance`` bytes apart) to ``out`` [weights, panels, LANES].

    Weights ``ahead`` bytes further are fetched into the cache.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        starts = _addresses(builder, args[2], weights.count)
        inputs = [args[3]]
        for _ in range(1, panels.count):
            inputs.append(builder.add(inputs[-1], args[4]))
        zero = ir.Constant(_VECTOR, [0.0] * LANES)
        sums = [[cgutils.alloca_once_value(builder, zero) for _ in inputs] for _ in starts]

        def step(index: Any) -> None:
            place = builder.mul(index, ir.Constant(_LONG, 4 * LANES))
            values = [_at(builder, builder.add(x, place), _VECTOR) for x in inputs]
            place = builder.mul(index, ir.Constant(_LONG, 4))
            for start, line in zip(starts, sums, strict=True):
                weight = _splat(builder, _at(builder, builder.add(start, place), _SINGLE))
                for value, total in zip(values, line, strict=True):
                    _fused(builder, total, weight, value)

        unrolled = ir.Constant(_LONG, _UNROLLED_PANELS)
        whole = builder.sdiv(args[5], unrolled)
        with cgutils.for_range(builder, whole) as loop:
            first = builder.mul(loop.index, unrolled)
            for start in starts:
                place = builder.add(builder.mul(first, ir.Constant(_LONG, 4)), args[6])
                _prefetch(builder, builder.add(start, place))
            for i in range(_UNROLLED_PANELS):
                step(_plus(builder, first, i))
        with cgutils.for_range(builder, args[5], start=builder.mul(whole, unrolled)) as loop:
            step(loop.index)
        for i, total in enumerate(total for line in sums for total in line):
            _put_at(builder, builder.load(total), _plus(builder, args[7], 4 * LANES * i))
        return context.get_dummy_value()

    return types.void(weights, panels, at, x, distance, n, ahead, out), generate


@intrinsic
def _transpose(context: Any, count: Any, rows: Any, offset: Any, out: Any) -> Any:
    """Write LANES float32 elements at ``offset`` bytes of each of ``rows`` (as many as ``count``) to ``out`` [LANES,
    count]."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        starts = _addresses(builder, args[1], count.count)
        vectors = [_at(builder, builder.add(start, args[2]), _VECTOR) for start in starts]
        half, turns = LANES // 2, count.count.bit_length() - 1
        for _ in range(turns):
            middle = len(vectors) // 2
            pairs = list(zip(vectors[:middle], vectors[middle:], strict=True))
            vectors = [
                _shuffled(builder, a, b, [p for i in range(half) for p in (s + i, LANES + s + i)])
                for a, b in pairs
                for s in (0, half)
            ]
        for i, vector in enumerate(vectors):
            _put_at(builder, vector, _plus(builder, args[3], 4 * LANES * i))
        return context.get_dummy_value()

    return types.void(count, rows, offset, out), generate
