"""The projection: sizes, costs, the simulation, scenarios, and both validations from committed records."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from harness.cli import main as cli
from harness.projection import cells, fit, hardware, inputs, output, scenario, validate
from harness.projection.cost import Cost
from harness.projection.hardware import H100_PCIE5, Hardware
from harness.projection.models import PUBLIC, ModelSizes, embedded
from harness.projection.replay import Replayed, replay
from harness.projection.scenario import Routing
from harness.projection.simulation import Overlap, Simulation, Timed
from harness.projection.traces import Geometry, TraceError
from harness.projection.traces.synthetic import Recipe, Skew, make
from reports.pages import projection, projection_tables
from reports.results import paper
from reports.results.load import ReportError
from reports.results.projection import load
from reports.results.record import ResultFile
from specmoe import SpecOptions
from specmoe.offload.store import ExpertStore
from tests import ROOT

RECORDS = ROOT / "docs" / "records"
FULL = RECORDS / "full"
COMMITTED = RECORDS / "projection.json"
SMALL = replace(
    embedded(),
    name="small",
    dense_params=(10_000,) * 4,
    moe_layers=(1, 3),
    experts=16,
    expert_params=500_000,
    expert_bytes=1_000_000,
)
ROUTING = Routing(Skew("gini", 0.5), 0.0, 0.0, 0.9, 4, 4)


def machine(**values: float) -> Hardware:
    """Nothing costs anything but what is given."""
    free = {"link_gb_s": 1e9, "memory_gb_s": 1e9, "gemm_tflop_s": 1e9}
    fields = {name: free.get(name, 0.0) for name in vars(H100_PCIE5) if name not in ("name", "title")} | values
    changed = {name: replace(getattr(H100_PCIE5, name), value=value) for name, value in fields.items()}
    return replace(H100_PCIE5, **changed)


def decoded(gamma: int = 0, rows: int = 4) -> Replayed:
    """A few decode passes of the small model, nothing kept but draft experts."""
    recipe = Recipe(rows, 2, gamma, Skew("gini", 0.5), 0.9, cycles=5)
    options = SpecOptions(gamma=gamma, draft_experts=4, placement="on-demand")
    return replay(make(SMALL.geometry, recipe), options, SMALL.geometry.total_experts * SMALL.expert_bytes)


def timed(on: Hardware, overlap: Overlap, replayed: Replayed, model: ModelSizes = SMALL) -> Timed:
    return Simulation(Cost(on, model), overlap).run(replayed)


@pytest.mark.parametrize("model", PUBLIC.values(), ids=PUBLIC.keys())
def test_layer_sizes_add_up_to_the_published_size(model: ModelSizes) -> None:
    assert model.total_bytes / 1e9 == pytest.approx(model.published_gb, rel=0.03)


def test_sizes_agree_with_the_papers_table() -> None:
    for known in paper.MODELS:
        model = PUBLIC[known.id]
        assert (model.experts, model.top_k, len(model.moe_layers)) == (known.experts, known.top_k, known.moe_blocks)
        assert len(model.dense_params) == known.layers
        assert model.published_gb == known.size_gb


def test_sizes_of_the_embedded_model_are_those_of_its_files() -> None:
    config = json.loads((RECORDS.parent.parent / "workloads" / "embedded" / "config.json").read_text())
    model = embedded(1)
    assert len(model.moe_layers) == config["num_hidden_layers"]
    assert model.expert_params == 3 * config["hidden_size"] * config["moe_intermediate_size"]
    weights = RECORDS.parent.parent / "workloads" / "embedded" / "model.safetensors"
    assert model.total_bytes / 2 == pytest.approx(weights.stat().st_size, rel=0.02)  # on disk in 16 bits


def test_one_token_waits_for_memory_and_many_for_arithmetic() -> None:
    cost = Cost(machine(memory_gb_s=1000.0, gemm_tflop_s=1.0), SMALL)
    assert cost.expert_s(1) == pytest.approx(1_000_000 / 1e12)
    assert cost.expert_s(1000) == pytest.approx(2 * 500_000 * 1000 / 1e12)
    assert cost.expert_s(0) == 0.0


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


def test_the_oracle_hides_transfers_behind_the_block_before() -> None:
    on = machine(layer_launch_s=10.0, link_gb_s=1.0)  # seconds of compute a layer, milliseconds of transfers
    replayed = decoded()
    assert timed(on, "next-block", replayed).wait_s == 0.0
    assert timed(on, "serial", replayed).wait_s > 0.0


def test_a_draft_moves_nothing_and_takes_its_time() -> None:
    replayed = decoded(gamma=4)
    drafted = [v for p in replayed.passes if p.source.phase == "draft" for v in p.visits]
    assert drafted
    assert not any(v.misses for v in drafted)
    assert timed(machine(link_gb_s=0.001), "serial", replayed).draft_s == pytest.approx(0.0, abs=1e-6)
    assert timed(machine(layer_launch_s=1.0), "serial", replayed).draft_s == pytest.approx(
        4 * 4 * 5
    )  # steps, layers, cycles


def test_speculation_pays_on_a_slow_link_and_not_on_a_fast_one() -> None:
    def speedup(link_gb_s: float) -> float:
        on = machine(link_gb_s=link_gb_s, layer_launch_s=1e-3)
        ours, theirs = (scenario.run(s, SMALL, ROUTING, on, 16).tok_s for s in ("specmoe", "on-demand"))  # type: ignore[arg-type]
        return ours / theirs

    assert speedup(0.1) > 2
    assert speedup(1000.0) < 1


def test_an_ideal_prefetch_turns_misses_into_hits_beside_the_draft() -> None:
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


def test_bytes_do_not_depend_on_the_machine() -> None:
    moved = [scenario.run("specmoe", SMALL, ROUTING, m, 16).moved_bytes for m in hardware.PROFILES.values()]
    assert len(set(moved)) == 1


def test_a_cache_moves_less_than_nothing_kept() -> None:
    routing = replace(ROUTING, caching_share=0.25)
    cached, plain = (scenario.run(s, SMALL, routing, H100_PCIE5, 4) for s in ("caching", "on-demand"))  # type: ignore[arg-type]
    assert cached.moved_bytes < 0.8 * plain.moved_bytes
    assert cached.tokens == plain.tokens


@pytest.mark.parametrize(("tokens", "gamma"), [(7.265, 10), (1.0, 4), (6.0, 5), (2.5, 5)])
def test_acceptance_gives_back_the_tokens_per_step_it_came_from(tokens: float, gamma: int) -> None:
    accepted = scenario.acceptance_for(tokens, gamma)
    assert scenario.expected_tokens(accepted, gamma) == pytest.approx(tokens, abs=1e-6)


def test_impossible_tokens_per_step_are_refused() -> None:
    with pytest.raises(ValueError, match="impossible with gamma 5"):
        scenario.acceptance_for(7.0, 5)


def test_more_pinned_experts_cover_and_accept_more() -> None:
    given = replace(ROUTING, substitute_acceptance=0.8)
    fewer, more = (scenario.with_draft_experts(SMALL, given, 16, n) for n in (2, 8))
    assert fewer.acceptance < given.acceptance < more.acceptance
    assert scenario.with_draft_experts(SMALL, given, 16, 4).acceptance == pytest.approx(given.acceptance)


def test_the_papers_link_rate_follows_from_its_own_figures() -> None:
    step_s = 256 / 28.6
    assert inputs.paper_machine().link_gb_s.value == pytest.approx(28 / (0.9011 * step_s))


def test_every_input_says_where_it_is_from() -> None:
    given = [i for name in PUBLIC for i in inputs.of_model(name).inputs]
    given += [i for m in (*hardware.PROFILES.values(), inputs.paper_machine(), inputs.ssd_machine()) for i in m.inputs]
    assert {i.origin for i in given} <= {"paper", "measured here", "assumed", "public"}
    with pytest.raises(ValueError, match="unknown model"):
        inputs.of_model("gpt-2")


def test_records_tell_which_run_their_cell_was() -> None:
    loaded = cells.load([FULL / "quick.jsonl"])
    systems = {(m.cell.system, m.options.placement, m.options.gamma) for m in loaded}
    assert ("on-demand", "on-demand", 0) in systems
    assert ("caching", "lfu", 0) in systems
    assert ("specmoe", "lfu", 5) in systems
    assert not any(m.options.controller == "auto" for m in loaded)
    plain = {cells.trace_file(m, RECORDS / "traces") for m in loaded if not m.options.speculates}
    assert len(plain) == 3  # one per batch size: tokens do not depend on the policy


def test_emulated_cells_are_not_predicted_as_this_machine(tmp_path: Path) -> None:
    records = ResultFile(FULL / "quick.jsonl").read()
    plain = next(r for r in records if r.cell.system == "on-demand")
    results = ResultFile(tmp_path / "results.jsonl")
    results.append(plain.model_copy(update={"kind": "emulated"}))
    assert cells.load([results.path]) == []
    results.append(plain)
    assert [m.cell for m in cells.load([results.path])] == [plain.cell]


@pytest.fixture(scope="module")
def checked() -> validate.Validation:
    return validate.validate([FULL / "quick.jsonl"], RECORDS / "traces")


def test_replayed_cells_move_the_very_bytes_that_were_measured(checked: validate.Validation) -> None:
    assert len(checked.predictions) == 15
    assert all(p.bytes_error == 0 for p in checked.predictions)
    for one in checked.predictions:
        assert one.hit_rate == pytest.approx(one.measured.hits / one.measured.requests)


def test_held_out_cells_are_predicted_within_fifteen_percent(checked: validate.Validation) -> None:
    assert {p.measured.cell.system for p in checked.held_out} == {"caching"}
    assert checked.median_error <= 0.15
    assert checked.median_own_link_error <= 0.15


def test_a_missing_trace_is_an_error_that_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="trace record"):
        validate.validate([FULL / "quick.jsonl"], tmp_path)


def test_validation_without_calibration_cells_is_refused() -> None:
    with pytest.raises(ValueError, match="no calibration cell"):
        validate.validate([FULL / "ablation-n.jsonl"], RECORDS / "traces")


def test_the_committed_projection_answers_for_every_headline_figure() -> None:
    content = load(COMMITTED)
    assert content["kind"] == "projected"
    asked = {
        "speedup.nllb",
        "latency.nllb",
        "bytes.vs-on-demand",
        "bytes.vs-caching",
        "speedup.mixtral",
        "speedup.scout",
    }
    asked |= {f"growth.{s}" for s in ("on-demand", "caching", "specmoe")} | {"ssd.specmoe"}
    asked |= {f"n-sweep.{n}.{what}" for n in (2, 4, 8, 16) for what in ("tokens", "throughput")}
    assert asked <= {row["id"] for row in content["paper"]}
    for row in content["paper"]:
        assert row["paper"] == paper.figure(row["id"]).value
        assert row["error"] == pytest.approx(row["projected"] / row["paper"] - 1, abs=1e-4)
    assert content["validation"]["median_absolute_error"] <= 0.15


def test_figures_that_are_missed_come_with_a_reason() -> None:
    content = load(COMMITTED)
    missed = [
        r for r in content["paper"] if abs(r["error"]) > projection_tables.NOTABLE_ERROR and r["role"] == "prediction"
    ]
    told = " ".join(titles for titles, _ in projection_tables.shortfalls(content))
    assert missed
    for row in missed:
        assert row["why"]
        assert row["title"] in told


def test_a_part_has_tables_and_figures_with_their_data(tmp_path: Path) -> None:
    first, second = projection.parts([COMMITTED, COMMITTED], tmp_path / "figures")
    assert (first.anchor, second.anchor) == ("projection", "projection-2")
    assert all(len(row) == len(table.headers) for table in first.tables for row in table.rows)
    assert {table.kind for table in first.tables} == {"projected"}
    assert {"projection-sensitivity", "projection-validation"} <= {figure.id for figure in first.figures}
    for drawn in first.figures:
        assert len(drawn.alt) > 40
        assert "Hollow marks" in drawn.caption
        assert min(p.stat().st_size for p in (drawn.png, drawn.svg)) > 5000
        assert len(pd.read_csv(drawn.csv))
    assert not {figure.png for figure in first.figures} & {figure.png for figure in second.figures}


def test_a_projection_without_validation_is_shown_without_it(tmp_path: Path) -> None:
    content = json.loads(COMMITTED.read_text()) | {"validation": None, "other_machines": []}
    path = output.write(content, tmp_path / "projection.json")
    text = projection.markdown(path)
    assert "measured on this machine and not used" not in text
    assert "Predicted against measured" not in text
    (part,) = projection.parts([path], tmp_path / "figures")
    assert "projection-validation" not in {figure.id for figure in part.figures}


def test_the_overview_has_one_row_per_choice_with_a_verdict_of_three_words() -> None:
    first, selection, *others = (
        [cell.text for cell in row] for row in projection_tables.overview(load(COMMITTED)).rows
    )
    assert first[3:] == ["3.81× [2.61, 5.30]", "4.30×", "clear projected gain"]
    assert selection[1:] == ["hot-temporal", "NLLB-MoE, paper's machine", "1.06×", "1.14×", "small projected effect"]
    assert all(len(row[-1].split()) == 3 for row in (first, selection, *others))


def test_the_committed_document_holds_the_committed_projection(tmp_path: Path) -> None:
    committed = RECORDS.parent / "projection.md"
    again = projection.write(COMMITTED, tmp_path / "projection.md")
    assert committed.read_text() == again.read_text(), "run the command that it names"
    for picture in re.findall(r"\]\((figures/.*?)\)", committed.read_text()):
        assert (committed.parent / picture).exists()
        data = Path(picture).with_suffix(".csv")
        assert (committed.parent / data).read_text() == (again.parent / data).read_text()


@pytest.mark.parametrize("content", ["", "[]", '{"schema_version": "other"}'])
def test_a_file_that_is_no_projection_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "projection.json"
    path.write_text(content)
    with pytest.raises(ReportError, match=r"projection\.json"):
        load(path)
    with pytest.raises(ReportError, match="no projection at"):
        load(tmp_path / "other.json")


def test_a_trace_is_made_shown_and_replayed_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(tmp_path / "trace.parquet")
    assert cli.main(["trace", "make", file, "--rows", "4", "--new-tokens", "12", "--geometry", "2x16,2,4096"]) == 0
    assert cli.main(["trace", "show", file]) == 0
    assert "2 MoE layers of 16 experts, top-2" in capsys.readouterr().out
    assert cli.main(["trace", "replay", file, "--expert-budget", "50%", "--option", "gamma=5"]) == 0
    assert "hit rate" in capsys.readouterr().out
    assert cli.main(["trace", "replay", file]) == 2
    assert "--expert-budget" in capsys.readouterr().err
    assert cli.main(["trace", "make", file, "--skew", "much"]) == 2


def test_replaying_a_committed_trace_needs_no_model(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a replay opened an expert store")

    monkeypatch.setattr(ExpertStore, "open", refuse)
    file = next((RECORDS / "traces").glob("embedded-x32-b8-t32-g5-*.parquet"))
    assert cli.main(["trace", "replay", str(file)]) == 0
    assert "call 1: 1228 expert requests" in capsys.readouterr().out


def test_a_geometry_is_parsed_from_its_short_form() -> None:
    assert Geometry.parse("6x64,2,4096") == Geometry.even(6, 64, 2, 4096)
    with pytest.raises(TraceError, match="LAYERSxEXPERTS"):
        Geometry.parse("6 layers")


def test_counted_work_is_the_compute_of_the_simulation() -> None:
    replayed, on = decoded(gamma=4), machine(memory_gb_s=5.0, gemm_tflop_s=0.01, layer_launch_s=1e-3, token_s=1e-4)
    one = timed(on, "serial", replayed)
    work = fit.Work.of(replayed, "verify"), fit.Work.of(replayed, "draft")
    cost = Cost(on, SMALL)
    assert [w.compute_s(cost) for w in work] == pytest.approx([one.verify_s - one.wait_s, one.draft_s])
