"""A worker makes the request of its cell, and refuses an answer with other row lengths."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from baselines import registry
from baselines.contract import Generation, Request
from harness.plan.experiment import plan, validate
from harness.run import worker
from harness.run.engines import Engines
from harness.run.job import Job, Paths
from harness.run.worker import _check_lengths
from reports.results.record import Cell
from tests.conftest import prompts as random_prompts
from tests.harness.experiments import SIZES
from workloads import models, prompts

EXPERIMENT = {"name": "x", "model": "embedded", "systems": [{"system": "on-demand"}], "batch_sizes": [4]}


def _job(cell: Cell, prompt_set: str) -> Job:
    """As the runner makes it."""
    unused = Path("unused")
    paths = Paths(model=models.path("embedded"), store=unused, scratch=unused, reference=unused, result=unused)
    return Job(action="measure", cell=cell.model_copy(update={"prompts": prompt_set}), paths=paths)


def test_a_worker_makes_the_batch_of_its_cell() -> None:
    changes = {"batch_sizes": [256], "prompt_tokens": {"distribution": "uniform", "low": 10, "high": 90}}
    output = {"distribution": "lognormal", "median": 20, "sigma": 0.7, "max": 64}
    experiment = validate(EXPERIMENT | changes | {"output_tokens": output, "request_seed": 3}, "test")
    (planned,) = plan(experiment, SIZES)
    batch = worker.batch(_job(planned.cell, "questions"))
    assert batch.attention_mask.sum(1).tolist() == planned.cell.shape.prompt_lengths(256)
    assert list(batch.output_tokens) == planned.cell.shape.output_lengths(256)
    assert planned.cell.shape.seed == 3


def test_prompts_that_exceed_the_model_fail_before_it_is_loaded() -> None:
    (planned,) = plan(validate(EXPERIMENT | {"new_tokens": 900}, "test"), SIZES)
    with pytest.raises(ValueError, match="the model has 1024 positions"):
        worker.batch(_job(planned.cell, "summarisation"))


def test_a_model_is_profiled_with_rendered_calibration_prompts() -> None:
    (planned,) = plan(validate(EXPERIMENT, "test"), SIZES)
    texts = worker._calibration_texts(_job(planned.cell, "embedded"))
    assert texts == tuple(p.text for p in prompts.load()[-prompts.CALIBRATION :])


def test_an_answer_with_a_row_too_long_or_missing_is_an_error_of_the_system() -> None:
    ids, mask = random_prompts(2)
    request = Request(ids, mask, 4, lambda: None, (4, 3))
    _check_lengths(Generation([torch.zeros(4, dtype=torch.long), torch.zeros(3, dtype=torch.long)]), request)
    with pytest.raises(RuntimeError, match="row 1 came back with 4 tokens, 3 were requested"):
        _check_lengths(Generation(torch.zeros(2, 4, dtype=torch.long)), request)
    with pytest.raises(RuntimeError, match="1 rows came back, 2 were requested"):
        _check_lengths(Generation(torch.zeros(1, 4, dtype=torch.long)), request)


def test_repetitions_before_one_that_fails_stay_in_the_answer(tmp_path: Path) -> None:
    (planned,) = plan(validate(EXPERIMENT | {"repetitions": 3, "batch_sizes": [2], "new_tokens": 2}, "test"), SIZES)
    job = _job(planned.cell, "embedded")
    job = job.model_copy(update={"paths": job.paths.model_copy(update={"reference": tmp_path / "reference.json"})})
    job.paths.reference.write_text("[[0, 0], [0, 0]]")

    class Twice:
        card, calls = registry.systems()["on-demand"].card, 0

        def generate(self, request: Request) -> Generation:
            request.on_prefill_done()
            self.calls += request.new_tokens == 2
            if self.calls == 3:
                raise OSError("the disk is gone")
            return Generation(torch.zeros(2, request.new_tokens, dtype=torch.long))

    answer = worker._measure(job, Twice(), 0.5, Engines())
    assert (answer.status, answer.error) == ("failed", "repetition 3: OSError: the disk is gone")
    assert [repetition["fidelity"] for repetition in answer.repetitions] == [1.0, 1.0]
