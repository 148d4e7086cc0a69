"""Threads that help with a compiled function when they get a core, and that it never waits for when they do not.

The calling thread publishes a job and works on it itself; helpers that are awake take tasks of the same job.  When the
tasks are used up the caller waits only for tasks under way.  A helper that the kernel has not scheduled yet, beside a
busy process, finds the job closed and sleeps again; a team of OpenMP would wait for it at its barrier.

Helpers are native threads without Python state.  After a job they spin for ``SPINS`` turns, then offer their core to
others ``YIELDS`` times, and then sleep on a futex.
"""

from __future__ import annotations

import functools
import platform
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from specmoe.compute.entry import address_of

GENERATION, OPEN, BUSY, FUNCTION, ARGUMENT = range(5)  # int64 fields of the control block, a cache line each
LINE = 64
SPINS = 5_000
"""A few microseconds: the time between two products of one expert."""
YIELDS = 2_000
"""Some 200 to 400 microseconds: the time between two layers.  Waking a sleeping thread takes 30 to 60."""
BUSY_JOBS = 500
"""A helper that lost its core to another process sleeps at once for so many jobs: a thread that wakes gets it back."""
COUNTERS = 5
"""The line of an argument from which a job may have further counters."""
MISSED_JOBS = 3
"""Missing so many, a helper has lost its core; it may miss one or two that the caller ended by itself in no time."""
CONTROL_BYTES = 5 * LINE
CONTROL, JOB, JOB_ARGUMENT, COUNT = range(4)  # of a request, likewise
REQUEST_BYTES = 4 * LINE
_FUTEX, _YIELD = {"x86_64": (202, 24), "aarch64": (98, 124)}.get(platform.machine(), (0, 0))
_WAIT, _WAKE = 128, 129  # private futex operations
_syscall = types.ExternalFunction(
    "syscall", types.int64(types.int64, types.int64, types.int64, types.int64, types.int64)
)


def _word(builder: Any, control: Any, field: Any) -> Any:
    """A pointer to a field of the control block; each field has a cache line of its own."""
    word = ir.IntType(64)
    return builder.inttoptr(builder.add(control, builder.mul(field, ir.Constant(word, LINE))), word.as_pointer())


@intrinsic
def _read(context: Any, control: Any, field: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load_atomic(_word(builder, *args), ordering="seq_cst", align=8)

    return types.int64(control, types.int64), generate


@intrinsic
def _write(context: Any, control: Any, field: Any, value: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store_atomic(args[2], _word(builder, *args[:2]), ordering="seq_cst", align=8)
        return context.get_dummy_value()

    return types.void(control, types.int64, types.int64), generate


@intrinsic
def _add(context: Any, control: Any, field: Any, value: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.atomic_rmw("add", _word(builder, *args[:2]), args[2], "seq_cst")

    return types.int64(control, types.int64, types.int64), generate


@intrinsic
def _call(context: Any, function: Any, argument: Any) -> Any:
    """Call ``void function(int64)`` at an address."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [ir.IntType(64)])
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), [args[1]])
        return context.get_dummy_value()

    return types.void(function, argument), generate


@njit
def _help(control: Any) -> None:
    seen = np.int64(0)
    spins = busy = 0  # ``busy``: jobs for which to sleep at once
    slept = True
    while True:
        now = _read(control, GENERATION)
        if now == seen:
            spins += 1
            if spins > SPINS + (0 if busy else YIELDS):
                _syscall(_FUTEX, control, _WAIT, seen & 0xFFFFFFFF, 0)
                spins, slept = 0, True
            elif spins > SPINS:
                _syscall(_YIELD, 0, 0, 0, 0)
            continue
        if now > seen + MISSED_JOBS and not slept:  # although it was awake
            busy = BUSY_JOBS
        elif busy:
            busy -= 1
        seen, spins, slept = now, 0, False
        _add(control, BUSY, 1)
        if _read(control, OPEN) == seen:
            _call(_read(control, FUNCTION), _read(control, ARGUMENT))
        _add(control, BUSY, -1)


@njit
def _share(control: Any, function: Any, argument: Any) -> None:
    """Run a job to its end."""
    _write(control, FUNCTION, function)
    _write(control, ARGUMENT, argument)
    generation = _read(control, GENERATION) + 1
    _write(control, OPEN, generation)
    _write(control, GENERATION, generation)
    _syscall(_FUTEX, control, _WAKE, 1 << 30, 0)
    _call(function, argument)
    _write(control, OPEN, 0)
    spins = 0
    while _read(control, BUSY) > 0:
        spins += 1
        if spins % 1024 == 0:  # the helper may need this core
            _syscall(_YIELD, 0, 0, 0, 0)


@njit
def _lead(request: Any) -> None:
    """Run the job of a request, or its sequence of ``COUNT`` steps at ``JOB``: (lines, function, argument) each.

    ``lines`` is 0 for a step of this thread alone; else the first word of the argument is a counter that becomes 0, and
    so do those of its lines from ``COUNTERS`` up to ``lines``.
    """
    control, count = _read(request, CONTROL), _read(request, COUNT)
    if count == 0:
        _share(control, _read(request, JOB), _read(request, JOB_ARGUMENT))
    for i in range(count):
        step = _read(request, JOB) + 24 * i
        function, argument = _read(step + 8, 0), _read(step + 16, 0)
        lines = _read(step, 0)
        if lines:
            _write(argument, 0, 0)
            for k in range(COUNTERS, lines):
                _write(argument, k, 0)
            _share(control, function, argument)
        else:
            _call(function, argument)


def pool_help(control):  # type: ignore[no-untyped-def]
    _help(control)


def pool_lead(request):  # type: ignore[no-untyped-def]
    _lead(request)


@functools.cache
def compiled() -> tuple[int, int]:
    """Addresses of the helper's loop and of the leader: ``void f(int64 address)``."""
    return address_of(pool_help), address_of(pool_lead)
