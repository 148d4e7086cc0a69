"""Computed times are accepted from oracles, and only from them."""

from __future__ import annotations

import pytest

from baselines import registry
from baselines.counters import Counters
from harness.run.repetition import oracle_times


def test_computed_times_come_from_oracles_and_only_from_them() -> None:
    known = registry.systems()
    computed = Counters(oracle_prefill_s=1.0, oracle_decode_s=2.0)
    assert oracle_times(known["overlap"].card, computed) == {"prefill_s": 1.0, "decode_s": 2.0}
    assert oracle_times(known["naive"].card, Counters()) == {}
    for name, counters in (("overlap", Counters()), ("naive", computed)):
        with pytest.raises(RuntimeError, match="computed times come from oracles"):
            oracle_times(known[name].card, counters)
