"""A gated link with a residency on top."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from specmoe import ExpertStore
from specmoe.offload.placement import LeastRecentlyUsed
from tests.specmoe.offload.bench import Bench


@pytest.fixture
def bench(store: ExpertStore) -> Iterator[Bench]:
    made = Bench(store, 6, LeastRecentlyUsed())
    yield made
    made.let_through(100)
    made.link.close()
