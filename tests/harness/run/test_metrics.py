"""Metrics follow from repetitions as defined, and recomputing committed records gives the figures they hold."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from harness.run.metrics import Weights, measured
from harness.run.repetition import Arrivals, fidelity
from reports.results.metrics import METRICS, Context, combine
from reports.results.record import Ceilings, Cell, ResultFile
from reports.results.repetition import Repetition
from tests import ROOT

CELL = Cell(system="specmoe", model="m", batch_size=2, new_tokens=5)
CEILINGS = Ceilings(date="2026-01-01T00:00:00+00:00", disk_read_gb_s=2.0, memory_gb_s=10.0, memory_read_gb_s=4.0)
REPETITION = Repetition(
    prefill_s=1,
    decode_s=2.0,
    prompt_tokens=4,
    new_tokens=10,
    decode_steps=4,
    expert_requests=6,
    decode_link_bytes=1_000_000_000,
    decode_link_busy_s=1.0,
    decode_kernel_read_bytes=1_000_000_000,
)
WEIGHTS = Weights(expert_bytes=500_000_000, other_bytes=250_000_000, all_experts_bytes=2_000_000_000)
NO_WEIGHTS = Context(batch_size=2, expert_bytes=0, other_bytes=0)
OF_THE_CELL = {"peak_device_expert_bytes", "peak_rss_bytes"}  # counters of the process, not in older repetitions
OF_WEIGHTS = {"modelled_memory_gb_s", "memory_of_ceiling", "achieved_over_limit"}  # records do not hold their sizes


@pytest.mark.parametrize(
    "path", sorted((ROOT / "docs" / "records").rglob("*.jsonl")), ids=lambda path: path.relative_to(ROOT).as_posix()
)
def test_recomputed_metrics_equal_committed_records(path: Path) -> None:
    names = set(METRICS) - OF_THE_CELL - OF_WEIGHTS
    for record in ResultFile(path).read():
        if record.metrics is None:
            continue
        found = measured(record.repetitions, record.cell, record.usage, record.ceilings, WEIGHTS)
        for name in names & record.metrics.model_fields_set:  # not those of a later release
            assert getattr(found, name) == getattr(record.metrics, name), name


def test_a_worker_loads_no_pandas_under_its_memory_limit() -> None:
    loaded = "import sys, harness.run.worker; print(*{'pandas', 'matplotlib', 'scipy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", loaded], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_decode_figures_leave_out_the_first_token_of_each_row() -> None:
    found = combine([REPETITION], NO_WEIGHTS)
    assert (found.decode_tok_s, found.tpot_s, found.tokens_per_step) == (4.0, 0.5, 1.0)
    assert (found.prefill_tok_s, found.ttft_s) == (4.0, 1.0)
    assert found.link_bytes_per_token == 125_000_000


def test_repetitions_are_combined_by_their_median_and_fidelity_by_its_minimum() -> None:
    times = [REPETITION.model_copy(update={"decode_s": s, "fidelity": f}) for s, f in ((1, 1.0), (2, 0.5), (8, None))]
    found = combine(times, NO_WEIGHTS)
    assert (found.decode_tok_s, found.fidelity) == (4.0, 0.5)
    assert found.hit_rate is None


def test_shares_of_the_calibrated_ceilings_are_stated() -> None:
    found = measured([REPETITION], CELL, None, CEILINGS, WEIGHTS)
    assert found.link_of_ceiling == 0.5
    assert (found.kernel_read_gb_s, found.disk_of_ceiling) == (0.5, 0.25)
    assert (found.modelled_memory_gb_s, found.memory_of_ceiling) == (2.0, 0.2)


def test_a_throttle_below_the_disk_is_the_ceiling() -> None:
    cell = CELL.model_copy(update={"disk_read_limit_bytes_s": 1_000_000_000})
    assert measured([REPETITION], cell, None, CEILINGS, WEIGHTS).link_of_ceiling == 1.0
    assert measured([REPETITION], cell, None, None, WEIGHTS).link_of_ceiling == 1.0


def test_the_ceiling_is_that_of_the_medium_that_experts_cross() -> None:
    ceilings = CEILINGS.model_copy(update={"dram_copy_gb_s": 4.0, "pcie_to_gpu_gb_s": 20.0})

    def share(device: str, slow_tier: str) -> float | None:
        cell = CELL.model_copy(update={"device": device, "slow_tier": slow_tier})
        return measured([REPETITION], cell, None, ceilings, WEIGHTS).link_of_ceiling

    assert share("cpu", "host") == 1 / 4
    assert share("cuda", "host") == 1 / 20
    assert share("cuda", "disk") == 1 / 2
    assert share("cpu", "paced:2GB/s") == 1 / 2
    assert share("cpu", "paced:25GB/s") == 1 / 4, "a copy cannot be faster than memory"


def test_without_a_calibration_shares_are_missing_and_not_guessed() -> None:
    found = measured([REPETITION], CELL, None, None, WEIGHTS)
    assert (found.link_of_ceiling, found.disk_of_ceiling, found.memory_of_ceiling) == (None, None, None)
    silent = REPETITION.model_copy(update={"expert_requests": None})
    assert measured([silent], CELL, None, CEILINGS, WEIGHTS).modelled_memory_gb_s is None


def test_the_limit_of_a_decode_is_the_slower_of_its_transfers_and_its_reads() -> None:
    found = measured([REPETITION], CELL, None, CEILINGS, WEIGHTS)
    assert found.achieved_over_limit == pytest.approx(1.0 / 2.0), "4 GB read at 4 GB/s, 1 GB moved at 2 GB/s, in 2 s"
    moved = REPETITION.model_copy(update={"decode_link_bytes": 3_000_000_000})
    assert measured([moved], CELL, None, CEILINGS, WEIGHTS).achieved_over_limit == pytest.approx(1.5 / 2.0)
    drafting = REPETITION.model_copy(update={"cycles": [{"gamma": 3, "moved_bytes": 0}, {"gamma": 1}]})
    assert measured([drafting], CELL, None, CEILINGS, WEIGHTS).achieved_over_limit == pytest.approx(1.25 / 2.0)
    for changes in ({"expert_requests": None}, {"decode_link_bytes": None}):
        unknown = REPETITION.model_copy(update=changes)
        assert measured([unknown], CELL, None, CEILINGS, WEIGHTS).achieved_over_limit is None
    assert measured([REPETITION], CELL, None, None, WEIGHTS).achieved_over_limit is None


def test_the_link_is_judged_over_the_whole_time_of_cycles_that_it_bounds() -> None:
    bound = {
        "moved_bytes": 6_000_000_000,
        "draft_s": 1.0,
        "verify_s": 3.5,
        "other_s": 0.5,
        "wait_s": 2.5,
        "busy_s": 3.0,
    }
    free = bound | {"moved_bytes": 1_000_000_000, "wait_s": 1.0}
    cycles = REPETITION.model_copy(update={"cycles": [bound, free]})
    found = measured([cycles], CELL, None, CEILINGS, WEIGHTS)
    assert found.io_bound_link_of_ceiling == pytest.approx(6 / 5 / 2)
    without = REPETITION.model_copy(update={"cycles": [free]})
    assert measured([without], CELL, None, CEILINGS, WEIGHTS).io_bound_link_of_ceiling is None


def test_fidelity_is_the_share_of_the_common_prefix() -> None:
    assert fidelity([[1, 2, 3, 4]], [[1, 2, 3, 4]]) == 1.0
    assert fidelity([[1, 2, 9, 4]], [[1, 2, 3, 4]]) == 0.5
    assert fidelity([[1, 2, 3, 4], [9, 2, 3, 4]], [[1, 2, 3, 4], [1, 2, 3, 4]]) == 0.5
    assert fidelity([[1, 2]], [[1, 2, 3, 4]]) == 0.0


def test_arrivals_are_noted_by_row_and_bursts_share_a_time() -> None:
    arrivals = Arrivals(2)
    assert arrivals.seconds((2, 1)) is None, "nothing was reported"
    arrivals.note(0, 1)
    arrivals.note(1, 1)
    arrivals.note(0, 3)
    first, second = arrivals.seconds((4, 1)) or []
    assert 0 <= first[0] <= second[0] <= first[1] == first[2] == first[3]
    with pytest.raises(RuntimeError, match="row 0 has 3 tokens, 4 were reported: correct on_tokens"):
        arrivals.seconds((3, 1))
