"""Runs compiled functions on several threads; one pool of helpers for each number of threads."""

from __future__ import annotations

import ctypes
import functools
import platform
import sys
import threading
from array import array

from specmoe.compute import fields


def available() -> bool:
    """Whether the pool's way of waiting exists here: Linux on x86-64 or 64-bit Arm."""
    return sys.platform == "linux" and platform.machine() in ("x86_64", "aarch64")


class Pool:
    """``threads - 1`` helpers, started when the pool is made; they sleep between jobs and end with the process."""

    def __init__(self, threads: int) -> None:
        from specmoe.compute import pool

        helper, leader = pool.compiled()
        line = pool.LINE // 8  # fields are a cache line apart
        self._control, self._request = array("q", [0] * 6 * line), array("q", [0] * 5 * line)
        self._job, self._argument, self._count = pool.JOB * line, pool.JOB_ARGUMENT * line, pool.COUNT * line
        self._request[pool.CONTROL * line] = fields.address(self._control)
        self._lead = ctypes.CFUNCTYPE(None, ctypes.c_size_t)(leader)
        self._lock = threading.Lock()
        create = ctypes.CDLL(None).pthread_create
        create.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]
        for _ in range(threads - 1):
            identity = ctypes.c_ulong()
            if create(ctypes.byref(identity), None, helper, fields.address(self._control)):
                break  # thread limit reached: the caller does the work of the missing helpers

    def run(self, function: int, argument: int) -> None:
        """Call ``void function(int64 argument)`` here and on the helpers that are awake; all calls have returned."""
        with self._lock:
            self._request[self._job], self._request[self._argument] = function, argument
            self._request[self._count] = 0
            self._lead(fields.address(self._request))

    def run_sequence(self, steps: int, count: int) -> None:
        """Make ``count`` calls one after another: int64 (lines, function, argument) each, at address ``steps``.

        One with ``lines`` is called as by ``run``, once the counters of its argument (``specmoe.compute.pool``) are 0;
        others only here.
        """
        with self._lock:
            self._request[self._job], self._request[self._count] = steps, count
            self._lead(fields.address(self._request))


@functools.cache
def pool(threads: int) -> Pool:
    """The pool for a number of threads."""
    return Pool(threads)
