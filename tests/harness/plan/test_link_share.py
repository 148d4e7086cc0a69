"""A slow tier can be paced to a share of the calibrated memory rate; a cell names the rate that it stands for."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.machine import calibrate, ceilings
from harness.plan.errors import ConfigError
from harness.plan.experiment import plan, validate
from harness.run.memory_rate import memory_read_gb_s
from reports.results.record import Ceilings
from tests.harness.experiments import MINIMAL, SIZES, planned

SHARE = MINIMAL | {"slow_tier": "paced: memory / 50"}


@pytest.mark.parametrize(
    ("slow_tier", "expected"),
    [
        ("paced:memory/50", "paced:0.4GB/s"),
        ("paced:memory/50.0 + 10 us", "paced:0.4GB/s+10us"),
        ("paced:memory/3000", "paced:0.0067GB/s"),
        ("paced:25GB/s", "paced:25GB/s"),
    ],
)
def test_a_cell_names_the_rate_in_two_digits(slow_tier: str, expected: str) -> None:
    (found,) = plan(validate(MINIMAL | {"slow_tier": slow_tier}, "test"), SIZES, memory_read_gb_s=20.13)
    assert found.cell.slow_tier == expected
    assert found.cell.emulated


def test_equal_shares_have_one_text() -> None:
    texts = ["paced:memory/50", "paced: memory/50.0", "paced:memory / 50"]
    assert validate(MINIMAL | {"slow_tier": texts}, "test").slow_tier == ["paced:memory/50"] * 3


@pytest.mark.parametrize(
    ("slow_tier", "message"),
    [
        ("paced:memory/0.5", "faster than memory: divide by 1 or more"),
        ("paced:memory", "is unknown: use disk, host, .*, or at a share of the memory rate: paced:memory/50"),
        ("paced:memory/50+fast", "is no latency, write it as in paced:memory/50\\+10us"),
    ],
)
def test_a_share_that_means_nothing_is_one_clear_error(slow_tier: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        planned(slow_tier=slow_tier)


def test_a_share_of_a_rate_that_is_not_known_is_refused_with_the_command() -> None:
    with pytest.raises(ConfigError, match="run `specmoe-bench calibrate` first, or state a rate"):
        planned(slow_tier="paced:memory/50")


def test_the_rate_is_that_of_the_last_calibration_or_of_one_made_now(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    monkeypatch.setattr(
        calibrate, "calibrate", lambda threads, show: Ceilings(date="2026-01-01T00:00:00Z", memory_read_gb_s=15.0)
    )
    assert memory_read_gb_s(validate(MINIMAL, "test"), lines.append) is None
    assert not lines
    share = validate(SHARE, "test")
    assert memory_read_gb_s(share, lines.append) == 15.0
    assert "no calibration of this machine" in lines[0]
    latest = ceilings.latest()
    assert latest is not None
    assert latest.memory_read_gb_s == 15.0
    assert memory_read_gb_s(share, lines.append) == 15.0
    assert len(lines) == 1
