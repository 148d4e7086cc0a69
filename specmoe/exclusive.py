"""Calls of one object that cannot overlap, because they share its slots and caches."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

from specmoe.errors import SpecMoEError

P = ParamSpec("P")
T = TypeVar("T")


@contextmanager
def busy(lock: threading.Lock) -> Iterator[None]:
    """Hold the lock of an engine that generates.

    Raises:
        SpecMoEError: another call holds it.
    """
    if not lock.acquire(blocking=False):
        raise SpecMoEError("this engine is already generating: wait for that call, or load a second engine")
    try:
        yield
    finally:
        lock.release()


def one_call_at_a_time(method: Callable[P, T]) -> Callable[P, T]:
    """Refuse a call of a method while another one holds the lock ``_busy`` of its object.

    Raises:
        SpecMoEError: another call has not ended.
    """

    @functools.wraps(method)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> T:
        with busy(args[0]._busy):  # type: ignore[attr-defined]
            return method(*args, **kwargs)

    return guarded
