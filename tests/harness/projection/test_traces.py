"""Traces: recorded from real runs, kept as parquet, replayed without the model, made from numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from pyarrow import parquet
from transformers import PreTrainedModel

from harness.projection.record_trace import RunToRecord, record
from harness.projection.replay import replay
from harness.projection.traces import Geometry, Trace, TraceError, files
from harness.projection.traces.describe import describe
from harness.projection.traces.recorder import TraceRecorder
from harness.projection.traces.synthetic import Recipe, Skew, make
from specmoe import SpecMoE, SpecOptions
from specmoe.recorder import NoRecorder
from specmoe.stats import GenerationStats
from tests import families
from tests.conftest import prompts

Tiny = tuple[Path, PreTrainedModel]
BUDGET = "60%"


def recorded(folder: Path, new_tokens: int = 14, **options: Any) -> tuple[Trace, list[GenerationStats], int]:
    """A trace of two calls on five rows, the engine's own counters of both, and the budget."""
    ids, mask = prompts(5)
    with SpecMoE.from_pretrained(folder, store=folder / "store", expert_budget=BUDGET, **options) as engine:
        layers = engine.store.layers
        geometry = Geometry(tuple(s.experts for s in layers), tuple(s.stride_bytes for s in layers), 2)
        recorder = TraceRecorder(geometry)
        stats = [
            engine.generate(ids, mask, max_new_tokens=n, eos_token_id=None, recorder=recorder).stats
            for n in (4, new_tokens)
        ]
        return recorder.trace, [s for s in stats if s is not None], engine.arena.budget_bytes


RUNS = {
    "on-demand": {"gamma": 0, "placement": "on-demand"},
    "caching LRU": {"gamma": 0, "placement": "lru"},
    "caching LFU": {"gamma": 0, "placement": "lfu"},
    "caching top fraction": {"gamma": 0, "placement": "top-fraction"},
    "specmoe N=2": {"gamma": 3, "draft_experts": 2},
    "specmoe N=4 on demand": {"gamma": 5, "draft_experts": 4, "placement": "on-demand"},
    "specmoe, accepted positions count, tail of the prompt first": {
        "gamma": 4,
        "draft_experts": 3,
        "counted": "accepted",
        "initial": "prefill-tail",
        "refresh_interval": 2,
    },
    "specmoe, residents draft": {"gamma": 4, "draft_experts": 2, "draft_pool": "resident", "ties": "incumbent"},
}


@pytest.mark.parametrize("options", RUNS.values(), ids=RUNS.keys())
def test_replaying_a_recorded_run_reproduces_its_hits_and_bytes_exactly(tiny: Tiny, options: dict[str, Any]) -> None:
    trace, stats, budget = recorded(tiny[0], **options)
    replayed = replay(trace, SpecOptions.of(**options), budget)
    for call, measured in enumerate(stats):
        for phase, counted in (("prefill", measured.prefill), ("verify", measured.decode)):
            totals = replayed.of_call(call).totals(phase)
            assert (totals.requests, totals.hits) == (counted.experts.requests, counted.experts.hits)
            assert totals.moved_bytes == counted.link.moved_bytes
        cycles = [p for p in replayed.of_call(call).passes if p.source.phase == "verify"]
        assert [sum(len(v.misses) for v in p.visits) * trace.geometry.slot_bytes for p in cycles] == [
            c.moved_bytes for c in measured.cycles
        ]
        assert trace.tokens_per_step(call) == pytest.approx(measured.tokens_per_step)


def test_one_trace_predicts_what_another_policy_moves(tiny: Tiny) -> None:
    trace, _, budget = recorded(tiny[0], **RUNS["on-demand"])
    _, stats, _ = recorded(tiny[0], **RUNS["caching LFU"])
    predicted = replay(trace, SpecOptions.of(**RUNS["caching LFU"]), budget).of_call(1).totals("verify")
    assert predicted.moved_bytes == stats[1].decode.link.moved_bytes
    assert predicted.hit_rate == pytest.approx(stats[1].hit_rate)


def test_a_trace_survives_the_file(tiny: Tiny, tmp_path: Path) -> None:
    trace, stats, budget = recorded(tiny[0], **RUNS["specmoe N=2"])
    trace.meta = {"model": "tiny", "seed": 0}
    again = files.read(files.write(trace, tmp_path / "run.parquet"))
    assert (again.geometry, again.meta) == (trace.geometry, trace.meta)
    for before, after in zip(trace.passes, again.passes, strict=True):
        assert (before.call, before.cycle, before.phase, before.step) == (
            after.call,
            after.cycle,
            after.phase,
            after.step,
        )
        taking_part = before.valid.any(1)
        assert torch.equal(before.rows[taking_part], after.rows)
        assert torch.equal(before.accepted[taking_part], after.accepted)
        for one, other in zip(before.picks, after.picks, strict=True):
            assert torch.equal(one[before.valid], other[after.valid])
    totals = replay(again, SpecOptions.of(**RUNS["specmoe N=2"]), budget).of_call(1).totals("verify")
    assert totals.moved_bytes == stats[1].decode.link.moved_bytes


def test_a_trace_file_is_read_without_our_code(tiny: Tiny, tmp_path: Path) -> None:
    trace, stats, _ = recorded(tiny[0], **RUNS["specmoe N=2"])
    path = files.write(trace, tmp_path / "run.parquet")
    frame = pd.read_parquet(path)
    verified = frame[(frame["phase"] == "verify") & (frame["call"] == 1)]
    asked = verified.explode("picks").groupby(["cycle", "layer"])["picks"].nunique().sum()
    pinned_anew = stats[1].decode.experts.requests - asked
    assert 0 <= pinned_anew <= 0.1 * asked
    kept = verified[(verified["layer"] == 0) & verified["kept"]]
    assert len(kept) == stats[1].decode_tokens
    assert kept.groupby("row")["position"].is_monotonic_increasing.all()
    assert not kept.duplicated(["row", "position"]).any()
    assert json.loads(parquet.read_schema(path).metadata[files.KEY])["geometry"]["top_k"] == 2


def test_a_run_without_a_recorder_is_the_same_run(tiny: Tiny) -> None:
    ids, mask = prompts(5)
    _, stats, _ = recorded(tiny[0], **RUNS["specmoe N=2"])
    with SpecMoE.from_pretrained(
        tiny[0], store=tiny[0] / "store", expert_budget=BUDGET, **RUNS["specmoe N=2"]
    ) as engine:
        for call, new_tokens in enumerate((4, 14)):
            alone = engine.generate(ids, mask, max_new_tokens=new_tokens, eos_token_id=None).stats
            assert alone is not None
            assert alone.decode.link.moved_bytes == stats[call].decode.link.moved_bytes
        assert isinstance(engine._state.recorder, NoRecorder)


@pytest.mark.parametrize("refused", [{"prefetch": "draft"}, {"controller": "auto"}])
def test_what_depends_on_time_is_refused(refused: dict[str, Any]) -> None:
    trace = make(Geometry.even(1, 8, 2, 4096), Recipe(1, 4, 2, Skew("zipf", 1.0)))
    with pytest.raises(TraceError, match="cannot be replayed"):
        replay(trace, SpecOptions.of(**refused), 1 << 20)


@pytest.mark.parametrize(
    ("experts", "top_k", "skew"),
    [
        (128, 2, Skew("gini", 0.84)),
        (16, 1, Skew("gini", 0.59)),
        (8, 2, Skew("gini", 0.32)),
        (64, 2, Skew("top-10%", 0.6)),
    ],
)
@pytest.mark.parametrize(("repeat", "correlation"), [(0.0, 0.0), (0.4, 0.3)])
def test_a_synthetic_trace_has_the_skew_asked_for(
    experts: int, top_k: int, skew: Skew, repeat: float, correlation: float
) -> None:
    recipe = Recipe(64, 48, 4, skew, repeat=repeat, correlation=correlation, prompt_tokens=32)
    made = describe(make(Geometry.even(2, experts, top_k, 4096), recipe))
    measured = made.gini if skew.measure == "gini" else made.top_10_percent_share
    assert measured == pytest.approx(skew.value, abs=0.04)


@pytest.mark.parametrize("repeat", [0.0, 0.3, 0.7])
def test_a_synthetic_trace_has_the_locality_asked_for(repeat: float) -> None:
    def rate(again: float) -> float:
        return describe(
            make(Geometry.even(2, 64, 2, 4096), Recipe(32, 40, 4, Skew("gini", 0.7), repeat=again))
        ).repeat_rate

    by_chance = rate(0.0)
    assert rate(repeat) == pytest.approx(repeat + (1 - repeat) * by_chance, abs=0.03)


def test_correlated_rows_share_experts() -> None:
    def overlap(correlation: float) -> float:
        recipe = Recipe(32, 40, 4, Skew("gini", 0.5), correlation=correlation)
        return describe(make(Geometry.even(2, 64, 2, 4096), recipe)).row_overlap

    apart = overlap(0.0)
    assert overlap(0.5) == pytest.approx(0.25 + 0.75 * apart, abs=0.03)
    assert overlap(1.0) == pytest.approx(1.0, abs=0.001)


def test_a_synthetic_trace_accepts_as_asked() -> None:
    acceptance, gamma = 0.8, 5
    made = describe(make(Geometry.even(1, 8, 2, 4096), Recipe(256, 120, gamma, Skew("zipf", 1.0), acceptance)))
    assert made.acceptance == pytest.approx(acceptance, abs=0.01)
    expected = (1 - acceptance ** (gamma + 1)) / (1 - acceptance)
    assert made.tokens_per_step == pytest.approx(expected, rel=0.05)  # last cycles are cut short


def test_a_seed_repeats_a_synthetic_trace() -> None:
    def made(seed: int) -> Trace:
        return make(Geometry.even(2, 16, 1, 4096), Recipe(4, 12, 3, Skew("zipf", 1.0), repeat=0.3, seed=seed))

    one, same, other = (torch.cat([p.flatten() for p in made(s).passes[-1].picks]) for s in (1, 1, 2))
    assert torch.equal(one, same)
    assert one.shape != other.shape or not torch.equal(one, other)


def test_every_row_of_a_synthetic_trace_gets_its_tokens() -> None:
    trace = make(Geometry.even(1, 8, 2, 4096), Recipe(6, 17, 4, Skew("zipf", 1.0), 0.6))
    gained = torch.ones(6)  # the prefill's
    for _, verify in trace.cycles(0):
        gained[verify.rows] += verify.accepted + 1
    assert gained.tolist() == [17] * 6


def test_impossible_requests_are_refused() -> None:
    with pytest.raises(TraceError, match="no Zipf law"):
        make(Geometry.even(1, 8, 2, 4096), Recipe(1, 4, 0, Skew("gini", 0.95)))
    with pytest.raises(TraceError, match="not a probability"):
        Recipe(1, 4, 0, Skew("zipf", 1.0), acceptance=1.2)
    with pytest.raises(TraceError, match="no trace at"):
        files.read(Path("nowhere.parquet"))


def test_a_file_that_is_no_trace_is_refused(tmp_path: Path) -> None:
    pd.DataFrame({"a": [1]}).to_parquet(tmp_path / "table.parquet")
    with pytest.raises(TraceError, match="is not a trace"):
        files.read(tmp_path / "table.parquet")


def test_a_geometry_is_parsed_from_its_short_form() -> None:
    assert Geometry.parse("6x64,2,4096") == Geometry.even(6, 64, 2, 4096)
    with pytest.raises(TraceError, match="LAYERSxEXPERTS"):
        Geometry.parse("6 layers")


def test_a_model_whose_picks_may_name_no_expert_is_refused(tmp_path: Path, cache: Path) -> None:
    families.build("longcat_flash", tmp_path / "model")
    with pytest.raises(TraceError, match="picks that name no expert"):
        record(RunToRecord(str(tmp_path / "model"), 1, 4, "100%"))
