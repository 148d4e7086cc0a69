"""Demanded transfers overtake prefetches, and a failed transfer fails only where it is waited for."""

from __future__ import annotations

from typing import Any

import pytest

from specmoe import ExpertStore, StoreError
from specmoe.offload.device import CpuDevice
from specmoe.offload.placement import OnDemand
from tests.specmoe.offload.bench import Bench


def _submit(bench: Bench, expert: int, ahead: bool) -> Any:
    return bench.link.submit(0, expert, CpuDevice().allocate(bench.stride), ahead=ahead)


def test_demanded_transfers_overtake_prefetches_that_have_not_begun(bench: Bench) -> None:
    transfers = [_submit(bench, expert, ahead=True) for expert in (0, 1, 2)]
    bench.until_begun(1)  # the first; the others are queued
    transfers.append(_submit(bench, 3, ahead=False))
    bench.let_through(4)
    for transfer in transfers:
        bench.link.wait(transfer)
    assert bench.source.began == [(0, 0), (0, 3), (0, 1), (0, 2)]


def test_a_promoted_prefetch_queues_with_the_demanded(bench: Bench) -> None:
    transfers = [_submit(bench, expert, ahead=True) for expert in (0, 1, 2)]
    bench.until_begun(1)  # the first; the others are queued
    transfers.append(_submit(bench, 3, ahead=False))
    bench.link.promote(transfers[2])
    bench.link.promote(transfers[0])  # has begun: nothing to do
    bench.let_through(4)
    for transfer in transfers:
        bench.link.wait(transfer)
    assert bench.source.began == [(0, 0), (0, 3), (0, 2), (0, 1)]


def test_only_what_has_not_begun_can_be_withdrawn(bench: Bench) -> None:
    begun = _submit(bench, 0, ahead=True)
    bench.until_begun(1)
    queued, demanded = _submit(bench, 1, ahead=True), _submit(bench, 2, ahead=False)
    assert bench.link.queued == 2
    assert bench.link.withdraw(queued)
    assert not bench.link.withdraw(queued)
    assert not bench.link.withdraw(begun)
    assert not bench.link.withdraw(demanded)
    bench.let_through(2)
    bench.link.wait(demanded)
    assert bench.source.began == [(0, 0), (0, 2)]
    assert bench.link.stats.moved_bytes == 2 * bench.stride


def test_closing_completes_queued_transfers(store: ExpertStore) -> None:
    bench = Bench(store, 6, OnDemand())
    transfers = [_submit(bench, expert, ahead=expert > 1) for expert in range(4)]
    bench.let_through(4)
    bench.link.close()
    assert all(t.done for t in transfers)
    bench.link.close()


def test_a_failed_transfer_fails_where_it_is_waited_for_and_nowhere_else(bench: Bench) -> None:
    bench.source.broken.add((0, 1))
    good, bad, after = (_submit(bench, expert, ahead=False) for expert in (0, 1, 2))
    bench.let_through(3)
    bench.link.wait(good)
    with pytest.raises(StoreError, match="unreadable"):
        bench.link.wait(bad)
    bench.link.wait(after)
