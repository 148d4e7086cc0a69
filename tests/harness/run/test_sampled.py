"""Sampled cells: systems draw as the reference does, a wrong acceptance rule is caught, and others refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from baselines import registry
from baselines.contract import Request
from baselines.decoding import Decoding
from harness.plan.experiment import ConfigError, validate
from harness.run import sampled
from harness.run.runner import Runner
from harness.run.sampled import Scorer
from reports.results.distribution import LEVEL, compare
from reports.results.record import Record
from specmoe import request
from tests.baselines.builders import setting_of
from tests.conftest import prompts
from tests.specmoe.test_sampling import AcceptAlways
from workloads.requests import Batch

NEW = 24
DECODING = Decoding(temperature=0.9, top_k=30, top_p=0.95)
ENGINE = {"gamma": 3, "draft_experts": 2, "substitution": "random"}


@pytest.fixture(scope="module")
def scorer(tiny: tuple[Path, PreTrainedModel]) -> Scorer:
    ids, mask = prompts(40)
    return Scorer(tiny[1], Batch(ids, mask, (NEW,) * len(ids)), DECODING)


@pytest.fixture(scope="module")
def reference(scorer: Scorer) -> list[float]:
    return scorer.reference_scores()


def _drawn(system: str, options: dict[str, Any], folder: Path, scratch: Path, scorer: Scorer) -> list[list[int]]:
    built, setting = registry.create(system, options), setting_of(folder, scratch)
    try:
        built.build(setting)
        built.prepare(setting)
        batch = scorer.batch
        asked = Request(batch.input_ids, batch.attention_mask, NEW, lambda: None, decoding=DECODING)
        rows: list[list[int]] = built.generate(asked).rows()
        return rows
    finally:
        built.close()


SYSTEMS: list[tuple[str, dict[str, Any]]] = [("hf-resident", {}), ("naive", {}), ("caching", {}), ("specmoe", ENGINE)]


@pytest.mark.parametrize(("system", "options"), SYSTEMS, ids=lambda value: value if isinstance(value, str) else "")
def test_systems_draw_as_the_reference_does(
    system: str,
    options: dict[str, Any],
    tiny: tuple[Path, PreTrainedModel],
    tmp_path: Path,
    scorer: Scorer,
    reference: list[float],
) -> None:
    found = compare(scorer.scores(_drawn(system, options, tiny[0], tmp_path, scorer), 1), reference)
    assert found.p > 0.001
    assert found.tokens == 40 * NEW
    assert found.reference_tokens >= sampled.REFERENCE_TOKENS
    assert found.detects < 0.11


def test_a_wrong_acceptance_rule_is_caught(
    tiny: tuple[Path, PreTrainedModel],
    tmp_path: Path,
    scorer: Scorer,
    reference: list[float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(request, "Sampling", AcceptAlways)
    scores = scorer.scores(_drawn("specmoe", ENGINE, tiny[0], tmp_path, scorer), 1)
    assert compare(scores, reference).p < LEVEL


@pytest.mark.parametrize("change", [{"temperature": 1.4}, {"top_k": 0, "top_p": 1.0}, {"temperature": 0.5}], ids=str)
def test_other_processing_than_asked_for_is_caught(
    change: dict[str, float], scorer: Scorer, reference: list[float]
) -> None:
    other = Scorer(scorer.model, scorer.batch, DECODING)
    rows = other._draw(DECODING.model_copy(update=change))
    assert compare(scorer.scores(rows, 3), reference).p < LEVEL


def test_scores_of_the_references_own_draws_are_uniform(reference: list[float]) -> None:
    values = torch.tensor(reference)
    assert float(values.min()) >= 0
    assert float(values.max()) <= 1
    assert float(values.mean()) == pytest.approx(0.5, abs=0.02)
    assert float((values < 0.1).float().mean()) == pytest.approx(0.1, abs=0.02)


def test_scores_are_the_same_in_chunks_and_for_rows_of_their_own_length(
    scorer: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = scorer._draw(DECODING)
    ragged = [row[: 2 + number % NEW] for number, row in enumerate(rows)]
    whole = scorer.scores(ragged, 5)
    assert len(whole) == sum(map(len, ragged))
    monkeypatch.setattr(sampled, "CHUNK_ELEMENTS", 1)
    assert scorer.scores(ragged, 5) == pytest.approx(whole, abs=1e-5)


def test_transformers_draws_are_repeated_by_their_seed_and_leave_the_global_generator_alone(scorer: Scorer) -> None:
    state = torch.random.get_rng_state()
    first = scorer._draw(DECODING)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert scorer._draw(DECODING) == first
    assert scorer._draw(DECODING.again(1)) != first


EXPERIMENT = {
    "name": "sampled",
    "model": "embedded",
    "systems": [
        {"system": "on-demand"},
        {"system": "llama-cpp"},
        {"system": "specmoe", "options": {"gamma": 3, "draft_experts": 8}},
    ],
    "batch_sizes": [3],
    "new_tokens": {"distribution": "uniform", "low": 4, "high": 12},
    "rounds": 1,
    "repetitions": 2,
    "warmup_tokens": 2,
    "threads": 1,
    "decoding": [None, {"temperature": 1.0, "seed": 3}],
}


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, bool], Record]:
    """By system and whether it sampled."""
    out = tmp_path_factory.mktemp("run")
    experiment = validate(EXPERIMENT, "test")
    runner = Runner.open(experiment, out, show=lambda line: None)
    runner.run()
    return {(record.cell.system, record.cell.decoding is not None): record for record in runner.results.read()}


@pytest.mark.slow
@pytest.mark.parametrize("system", ["on-demand", "specmoe"])
def test_the_record_of_a_sampled_cell_has_the_test_in_place_of_fidelity(
    system: str, records: dict[tuple[str, bool], Record]
) -> None:
    record, greedy = records[system, True], records[system, False]
    assert record.metrics is not None
    assert greedy.metrics is not None
    assert (greedy.metrics.fidelity, greedy.metrics.distribution_p) == (1.0, None)
    assert record.metrics.fidelity is None
    assert any("fidelity is null" in note for note in record.notes)
    first, second = record.repetitions
    assert record.metrics.distribution_p == min(1.0, 2 * min(first.distribution_p or 0, second.distribution_p or 0))
    assert record.metrics.distribution_p > LEVEL
    assert first.distribution_tokens == first.new_tokens
    assert (first.distribution_reference_tokens or 0) >= sampled.REFERENCE_TOKENS
    assert first.distribution_p != second.distribution_p, "each repetition has a seed of its own"
    assert record.cell_id != greedy.cell_id


@pytest.mark.slow
def test_a_system_that_cannot_sample_is_refused_with_a_reason(records: dict[tuple[str, bool], Record]) -> None:
    record = records["llama-cpp", True]
    assert record.status == "not_supported"
    assert record.error == "llama-cpp decodes greedily only: remove decoding, or the system"


@pytest.mark.parametrize(
    ("decoding", "message"),
    [({"temperature": 0}, "temperature"), ({"top_p": 0}, "top_p"), ({"top_k": -1}, "top_k"), ({"heat": 1}, "heat")],
)
def test_bad_decoding_is_refused(decoding: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate(EXPERIMENT | {"decoding": decoding}, "test")
