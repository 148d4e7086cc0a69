"""Runs compiled functions on torch's own OpenMP threads, so that one pool serves all kernels.

A second pool (numba's) would compete with torch's threads, which spin for a while after each of their own products.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from pathlib import Path

import torch

Fork = Callable[[int, int, int, int], None]


@functools.cache
def fork() -> Fork | None:
    """``GOMP_parallel(function address, argument address, threads, flags)`` of the library that torch uses.

    None where torch does not use GNU's OpenMP (macOS, Windows).
    """
    folder = Path(torch.__file__).parent
    for path in [*folder.glob("lib/libgomp*.so*"), *folder.with_name("torch.libs").glob("libgomp*.so*"), None]:
        try:
            library = ctypes.CDLL(None if path is None else str(path))
            threads, run = library.omp_get_max_threads, library.GOMP_parallel
        except (OSError, AttributeError):
            continue
        if threads() == torch.get_num_threads():
            run.argtypes = [ctypes.c_size_t, ctypes.c_size_t, ctypes.c_uint, ctypes.c_uint]
            run.restype = None
            return run  # type: ignore[no-any-return]
    return None
