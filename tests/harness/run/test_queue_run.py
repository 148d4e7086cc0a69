"""Queue cells: every request has its reference tokens, and the record has rates, latencies and goodput."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.plan.errors import ConfigError
from harness.plan.experiment import plan, validate
from harness.run.runner import Runner
from reports.pages.report import write_report
from reports.results.latency import end_to_end, percentile
from reports.results.metrics import Context, Sample, combine
from reports.results.record import Record
from reports.results.repetition import Repetition
from tests.harness.experiments import SIZES
from workloads.arrivals import Poisson

EXPERIMENT = {
    "name": "queue",
    "model": "embedded",
    "systems": [
        {"system": "on-demand"},
        {"system": "hf-resident"},
        {"system": "overlap"},
        {"system": "specmoe", "options": {"gamma": 3, "draft_experts": 8}},
    ],
    "batch_sizes": [3],
    "new_tokens": {"distribution": "uniform", "low": 2, "high": 12},
    "rounds": 1,
    "warmup_tokens": 2,
    "threads": 1,
    "requests": 8,
    "arrivals": {"process": "poisson", "rate_per_s": 40},
    "latency_limit_s": 60,
}


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Record]]:
    """(result file, records by system)."""
    out = tmp_path_factory.mktemp("run")
    runner = Runner.open(validate(EXPERIMENT, "test"), out, show=lambda line: None)
    results = runner.run()
    return results, {record.cell.system: record for record in runner.results.read()}


@pytest.mark.slow
@pytest.mark.parametrize("system", ["on-demand", "hf-resident", "specmoe"])
def test_a_queue_is_exact_and_has_its_measures(system: str, records: tuple[Path, dict[str, Record]]) -> None:
    record = records[1][system]
    assert (record.status, record.error) == ("ok", None)
    metrics, (raw,) = record.metrics, record.repetitions
    assert metrics is not None
    assert metrics.fidelity == 1.0
    assert raw.queue_s is not None
    assert metrics.requests_per_s == pytest.approx(8 / raw.queue_s)
    assert metrics.goodput_per_s == metrics.requests_per_s, "every request ended within a minute"
    assert metrics.queue_tok_s == pytest.approx(raw.new_tokens / raw.queue_s)
    assert raw.new_tokens == sum(record.cell.shape.output_lengths(8))
    assert raw.prefill_s + raw.decode_s <= raw.queue_s * 1.05
    assert raw.arrivals_s is not None
    latencies = end_to_end(raw.arrivals_s)
    assert 0 < min(latencies) <= (metrics.e2e_p50_s or 0) <= (metrics.e2e_p95_s or 0)
    assert metrics.e2e_p99_s == pytest.approx(percentile(latencies, 99))
    assert 0 < metrics.ttft_s < (metrics.e2e_p50_s or 0)


@pytest.mark.slow
def test_computed_times_are_refused_and_the_page_shows_the_queue(
    records: tuple[Path, dict[str, Record]], tmp_path: Path
) -> None:
    results, found = records
    assert found["overlap"].status == "not_supported"
    assert "requests of a queue arrive by the clock" in (found["overlap"].error or "")
    paths = write_report([results], tmp_path)
    page = paths.markdown.read_text()
    assert "8 requests, arriving Poisson at 40 per second" in page
    assert "requests per s" in page
    assert "goodput per s" in page


def test_measures_of_a_queue_come_from_its_times() -> None:
    raw = Repetition(
        prefill_s=1.0,
        decode_s=4.0,
        prompt_tokens=30,
        new_tokens=43,
        decode_steps=10,
        queue_s=10.0,
        request_arrival_s=[0.0, 1.0, 2.0],
        arrivals_s=[[0.5, 3.0], [1.0, 4.0], [4.0, 8.0]],
    )
    metrics = combine([raw], Context(batch_size=2, expert_bytes=1, other_bytes=1, latency_limit_s=4.0))
    assert (metrics.requests_per_s, metrics.goodput_per_s, metrics.queue_tok_s) == (0.3, 0.2, 4.3)
    assert (metrics.e2e_p50_s, metrics.ttft_s) == (4.0, 1.0)
    assert metrics.decode_tok_s == 10.0, "the first token of every request belongs to the prefill"
    assert combine([raw], Context(batch_size=2, expert_bytes=1, other_bytes=1)).goodput_per_s is None
    assert Sample(raw.model_copy(update={"request_arrival_s": None}), Context(2, 1, 1)).decoded_tokens == 41


def test_a_queue_is_a_cell_of_its_own_and_one_batch_keeps_its_id() -> None:
    plain = {key: value for key, value in EXPERIMENT.items() if key not in ("requests", "arrivals", "latency_limit_s")}
    swept = plain | {"requests": [4, 8], "arrivals": ["closed", {"rate_per_s": 0.5}]}
    cells = [planned.cell for planned in plan(validate(swept, "test"), SIZES)]
    assert len({cell.cell_id for cell in cells}) == 4 * 4
    assert {(cell.requests, cell.arrivals) for cell in cells} == {
        (count, arrivals) for count in (4, 8) for arrivals in (None, Poisson(rate_per_s=0.5))
    }
    assert len({cell.asked for cell in cells}) == 2, "arrivals change no prompt"
    (batch, *_), (again, *_) = (plan(validate(plain | more, "test"), SIZES) for more in ({}, {"requests": None}))
    assert batch.cell.cell_id == again.cell.cell_id
    assert batch.cell.rows == 3


@pytest.mark.parametrize("given", [{"arrivals": {"rate_per_s": 1}}, {"latency_limit_s": 3}])
def test_settings_of_a_queue_without_one_are_refused(given: dict[str, object]) -> None:
    plain = {key: value for key, value in EXPERIMENT.items() if key not in ("requests", "arrivals", "latency_limit_s")}
    with pytest.raises(ConfigError, match="set requests"):
        validate(plain | given, "test")
