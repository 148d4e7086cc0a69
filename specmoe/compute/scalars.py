"""Numbers in memory for functions compiled by numba: read and written at addresses, which are plain int64."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from specmoe.compute.fields import APART, NEXT, TASKS, THREADS

_FAST = {"reassoc", "contract", "nsz"}  # sums in any order; NaN and infinity survive
_FLOAT = np.float32(0)


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
def _set_field(context: Any, address: Any, index: Any, value: Any) -> Any:
    """Write element ``index`` of the int64 array at ``address``."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        start = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        builder.store(args[2], builder.gep(start, [args[1]]))
        return context.get_dummy_value()

    return types.void(address, index, types.int64), generate


@intrinsic
def _take(context: Any, address: Any) -> Any:
    """The int64 at ``address``, which is increased by one atomically."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        counter = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", counter, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(address), generate


@intrinsic
def _two_to(context: Any, exponent: Any) -> Any:
    """2 to the power of an int32 from -126 to 127, as float32."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word = ir.IntType(32)
        biased = builder.add(args[0], ir.Constant(word, 127))
        return builder.bitcast(builder.shl(biased, ir.Constant(word, 23)), ir.FloatType())

    return types.float32(types.int32), generate


@njit
def _next_task(args: Any, first: Any, done: Any) -> Any:
    """A task of the block of ``specmoe.compute.fields`` at ``args``, or a number beyond the last one, and ``done``.

    Each thread has a share of tasks that follow each other in memory, so that what is fetched ahead of one task serves
    the next; ``first`` is this thread's share.  A thread whose share is used up helps with the next one's; ``done``
    counts the shares that it has found used up.
    """
    threads, tasks = _field(args, THREADS), _field(args, TASKS)
    while done < threads:
        share = (first + done) % threads
        start, end = share * tasks // threads, (share + 1) * tasks // threads
        task = start + _take(args + 8 * (NEXT + APART * share))
        if task < end:
            return task, done
        done += 1
    return tasks, done
