"""A router of a few tokens, compiled by numba for one thread: logits, their softmax, and the best experts' shares."""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import carray, njit, types

from specmoe.compute.attention_kernel import _dot
from specmoe.compute.entry import address_of
from specmoe.compute.scalars import _FLOAT, _load, _store


@njit
def _is_new(picks: Any, found: Any, expert: Any) -> Any:
    for i in range(found):  # noqa: SIM110 - numba
        if picks[i] == expert:
            return False
    return True


@njit(error_model="numpy")
def _route(
    x: Any, weight: Any, logits: Any, shares: Any, picks: Any, tokens: Any, experts: Any, width: Any, k: Any, norm: Any
) -> None:
    for t in range(tokens):
        token, line, out = x + 4 * t * width, logits + 4 * t * experts, shares + 4 * t * k
        top = np.float32(-np.inf)
        for e in range(experts):
            logit = _dot(token, weight + 4 * e * width, width)
            _store(line, e, logit)
            top = logit if logit > top else top
        total = _FLOAT
        for e in range(experts):
            total += math.exp(_load(_FLOAT, line, e) - top)
        chosen = _FLOAT
        for i in range(k):
            best, largest = -1, np.float32(-np.inf)
            for e in range(experts):
                logit = _load(_FLOAT, line, e)
                if (logit > largest or best < 0) and _is_new(picks[t], i, e):
                    best, largest = e, logit
            picks[t, i] = best
            share = math.exp(_load(_FLOAT, line, best) - top) / total
            chosen += share
            _store(out, i, share)
        if norm:
            for i in range(k):
                _store(out, i, _load(_FLOAT, out, i) / chosen)


def route(x, weight, logits, shares, picks, tokens, experts, width, k, norm):  # type: ignore[no-untyped-def]
    _route(x, weight, logits, shares, carray(picks, (tokens, k)), tokens, experts, width, k, norm)


@functools.cache
def compiled() -> Callable[..., None]:
    """``route`` on the addresses of ``x`` [T, H], ``weight`` [E, H], the logits [T, E], the shares and picks [T, K].

    Further arguments: T, E, H, K, and whether the shares of a token sum to one.  Compiled unless numba's cache has it.
    """
    word = types.intp
    arguments = [word, word, word, word, types.CPointer(types.int64), word, word, word, word, word]
    return ctypes.CFUNCTYPE(None, *[ctypes.c_ssize_t] * len(arguments))(address_of(route, *arguments))
