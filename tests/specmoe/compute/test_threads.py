"""The pool computes every task once: with more threads than cores, from two callers at a time, and after a fork."""

from __future__ import annotations

import os
import threading

import pytest
import torch
import torch.nn.functional as F

from specmoe.compute.products import product
from specmoe.compute.threads import available

pytestmark = pytest.mark.skipif(not available(), reason="needs Linux on x86-64 or 64-bit Arm")


@pytest.fixture
def threads() -> object:
    """Sets torch's number of threads; the old one is back after the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def _check(seed: int, times: int) -> bool:
    generator = torch.Generator().manual_seed(seed)
    weight, x = torch.randn(700, 300, generator=generator), torch.randn(3, 300, generator=generator)
    expected = F.linear(x, weight)
    return all(torch.allclose(product(x, weight, None, "streaming"), expected, atol=1e-3) for _ in range(times))


@pytest.mark.parametrize("count", [1, 2, 5])
def test_every_block_is_computed_with_any_number_of_threads(count: int, threads: object) -> None:
    threads(count)  # type: ignore[operator]
    assert _check(0, 200)


def test_two_callers_at_a_time_get_their_own_results(threads: object) -> None:
    threads(2)  # type: ignore[operator]
    results: dict[int, bool] = {}
    callers = [threading.Thread(target=lambda seed=seed: results.update({seed: _check(seed, 100)})) for seed in (1, 2)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert results == {1: True, 2: True}


def test_a_forked_child_which_has_no_helpers_computes_alone(threads: object) -> None:
    threads(2)  # type: ignore[operator]
    generator = torch.Generator().manual_seed(3)
    weight, x = torch.randn(700, 300, generator=generator), torch.randn(3, 300, generator=generator)
    expected = product(x, weight, None, "streaming")
    child = os.fork()
    if child == 0:
        os._exit(0 if torch.equal(product(x, weight, None, "streaming"), expected) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
