"""Telemetry costs under 1 %: the same work with and without it, in turns.  Writes ``docs/records/telemetry.json``.

Two figures: processor time that the sampler took over wall time (exact), and wall time with over wall time without it
(includes disturbance of caches and locks, and the machine's noise).
"""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
import time

import pytest

from harness.machine import environment
from harness.machine.limits import MemoryLimit, detect
from harness.machine.telemetry import Telemetry
from harness.timestamp import now
from reports.results.stats import bootstrap, stability
from tests import ROOT

RECORD = ROOT / "docs" / "records" / "telemetry.json"
ROUNDS = 30
MEMORY_MIB = 700
# Holds as much memory as a cell does (PSS walks its pages), then computes through it for a known amount.
WORK = f"""
import hashlib, sys, time
memory = bytearray({MEMORY_MIB} << 20)
for page in range(0, len(memory), 4096):
    memory[page] = 1
view = memoryview(memory)
started = time.perf_counter()
for block in range(0, len(memory), 1 << 20):
    hashlib.sha256(view[block:block + (1 << 20)]).digest()
print(time.perf_counter() - started)
"""


def run(sampled: bool) -> tuple[float, float | None]:
    """(seconds of the work, the sampler's processor time over wall time)."""
    with MemoryLimit((MEMORY_MIB + 200) << 20, "overhead", detect()) as limit:
        process = subprocess.Popen(limit.command([sys.executable, "-c", WORK]), stdout=subprocess.PIPE, text=True)
        limit.add(process.pid)
        if not sampled:
            return float(process.communicate()[0]), None
        with Telemetry(process.pid, limit.group()) as telemetry:
            seconds = float(process.communicate()[0])
        return seconds, telemetry.usage().sampler_cpu_share


@pytest.mark.benchmark
@pytest.mark.slow
def test_telemetry_costs_less_than_one_percent() -> None:
    chance = random.Random(1)
    ratios, shares = [], []
    for _ in range(ROUNDS):
        seconds = {}
        for sampled in chance.sample([True, False], 2):
            seconds[sampled], share = run(sampled)
            if share is not None:
                shares.append(share)
            time.sleep(0.05)
        ratios.append(seconds[True] / seconds[False])
    ratio = bootstrap(ratios)
    facts = environment.capture()
    record = {
        "what": "cost of telemetry on a process of 700 MiB that computes",
        "date": now(),
        "environment": {name: facts[name] for name in ("cpu", "cores", "kernel", "python", "git_revision")},
        "rounds": ROUNDS,
        "sampler_cpu_share": {"median": statistics.median(shares), "largest": max(shares)},
        "wall_time_ratio": {"median": ratio.median, "low": ratio.low, "high": ratio.high},
        "wall_time_verdict": str(stability(ratios)),
        "wall_time_ratios": ratios,
    }
    RECORD.parent.mkdir(parents=True, exist_ok=True)
    RECORD.write_text(json.dumps(record, indent=2) + "\n")
    assert max(shares) < 0.01
    assert ratio.low is not None
    assert ratio.low < 1.01, "slower by 1 % beyond doubt"
