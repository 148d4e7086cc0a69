"""The simulation of compute and link keeps the limits of both tracks, whatever the overlap."""

from __future__ import annotations

import pytest

from harness.projection import fit
from harness.projection.cost import Cost
from harness.projection.replay import replay
from harness.projection.traces.synthetic import Recipe, Skew, make
from specmoe import SpecOptions
from tests.harness.projection.small_model import SMALL, decoded, machine, timed


def test_a_serial_link_adds_to_compute() -> None:
    replayed = decoded()
    compute = timed(machine(memory_gb_s=10.0), "serial", replayed)
    link = timed(machine(link_gb_s=1.0), "serial", replayed)
    both = timed(machine(memory_gb_s=10.0, link_gb_s=1.0), "serial", replayed)
    assert link.busy_s == pytest.approx(link.moved_bytes / 1e9)
    assert both.decode_s == pytest.approx(compute.decode_s + link.busy_s, rel=1e-6)
    assert both.wait_s == pytest.approx(link.busy_s, rel=1e-6)


def test_overlap_never_beats_the_busier_track_nor_loses_to_serial() -> None:
    replayed, on = decoded(rows=16), machine(memory_gb_s=2.0, link_gb_s=1.0)
    serial, pipelined, oracle = (timed(on, how, replayed) for how in ("serial", "pipelined", "next-block"))
    assert oracle.decode_s <= pipelined.decode_s <= serial.decode_s
    compute_s = serial.decode_s - serial.wait_s
    for one in (serial, pipelined, oracle):
        assert one.decode_s >= max(compute_s, one.busy_s) * (1 - 1e-9)
        assert one.moved_bytes == serial.moved_bytes


def test_the_oracle_hides_transfers_behind_the_previous_block() -> None:
    on = machine(layer_launch_s=10.0, link_gb_s=1.0)  # seconds of compute a layer, milliseconds of transfers
    replayed = decoded()
    assert timed(on, "next-block", replayed).wait_s == 0.0
    assert timed(on, "serial", replayed).wait_s > 0.0


def test_a_draft_takes_time_and_moves_nothing() -> None:
    replayed = decoded(gamma=4)
    drafted = [v for p in replayed.passes if p.source.phase == "draft" for v in p.visits]
    assert drafted
    assert not any(v.misses for v in drafted)
    assert timed(machine(link_gb_s=0.001), "serial", replayed).draft_s == pytest.approx(0.0, abs=1e-6)
    assert timed(machine(layer_launch_s=1.0), "serial", replayed).draft_s == pytest.approx(
        4 * 4 * 5
    )  # steps, layers, cycles


def test_an_ideal_prefetch_turns_misses_into_hits_during_the_draft() -> None:
    recipe = Recipe(8, 2, 4, Skew("gini", 0.5), 0.9, cycles=8)
    trace, budget = make(SMALL.geometry, recipe), SMALL.geometry.total_experts * SMALL.expert_bytes
    plain = SpecOptions(gamma=4, draft_experts=2, placement="on-demand")
    ahead = plain.model_copy(update={"prefetch": "draft", "prefetch_share": 1.0})
    without, none_fits, all_fits = (
        replay(trace, options, budget, ahead_per_step=fits)
        for options, fits in ((plain, None), (ahead, 0.0), (ahead, 100.0))
    )
    hits = [one.totals("verify").hit_rate or 0.0 for one in (without, none_fits, all_fits)]
    assert hits[0] == hits[1] < 0.6 < 0.8 < hits[2]
    on = machine(link_gb_s=1.0)
    late, early = timed(on, "pipelined", without), timed(on, "pipelined", all_fits)
    assert early.moved_bytes >= 0.9 * late.moved_bytes


def test_counted_work_is_the_compute_of_the_simulation() -> None:
    replayed, on = decoded(gamma=4), machine(memory_gb_s=5.0, gemm_tflop_s=0.01, layer_launch_s=1e-3, token_s=1e-4)
    one = timed(on, "serial", replayed)
    work = fit.Work.of(replayed, "verify"), fit.Work.of(replayed, "draft")
    cost = Cost(on, SMALL)
    assert [w.compute_s(cost) for w in work] == pytest.approx([one.verify_s - one.wait_s, one.draft_s])
