"""Compiled functions that are called by address: each is compiled once and lives as long as the process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import cfunc, types

_kept: list[Any] = []  # others hold their addresses


def address_of(source: Callable[..., None], *arguments: Any) -> int:
    """The address of ``source``, a module's function, as ``void f(arguments)``; by default one address (int64).

    Compiles it (seconds) unless numba's cache on disk has it.
    """
    function = cfunc(types.void(*arguments or (types.intp,)), cache=True)(source)
    _kept.append(function)
    return int(function.address)
