"""A differing token is a tie where the reference's own rounding explains it, and an error where it does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from harness.run import reference
from harness.run.differences import explained
from harness.run.reference import CANDIDATES, Logits
from reports.results.repetition import Difference, Repetition
from tests.conftest import prompts
from tests.conftest import reference as transformers_reference
from workloads.requests import Batch

LENGTHS = (6, 3, 6)


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16, torch.float16], ids=str)
def written(
    request: Any, tiny: tuple[Path, PreTrainedModel], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, PreTrainedModel, Batch]:
    """A reference of three rows: (its file, the model, the batch)."""
    model = type(tiny[1]).from_pretrained(tiny[0], dtype=request.param).eval()
    ids, mask = prompts(3)
    batch = Batch(ids, mask, LENGTHS)
    file = tmp_path_factory.mktemp("reference") / "tokens.json"
    reference.write(model, batch, file, len(batch.output_tokens))
    return file, model, batch


def test_tokens_are_those_of_generate_and_the_best_of_the_logits(written: tuple[Path, PreTrainedModel, Batch]) -> None:
    file, model, batch = written
    tokens, logits = json.loads(file.read_text()), Logits.read(file)
    assert logits is not None
    expected = transformers_reference(model, batch.input_ids, batch.attention_mask, 6)[:, -6:].tolist()
    assert tokens == [row[:n] for row, n in zip(expected, LENGTHS, strict=True)]
    assert [[step[0] for step in row] for row in logits.tokens] == tokens
    assert {len(step) for row in logits.logits for step in row} == {CANDIDATES}
    assert all(step == sorted(step, reverse=True) for row in logits.logits for step in row)


def test_the_noise_floor_is_what_another_batch_shape_changes(written: tuple[Path, PreTrainedModel, Batch]) -> None:
    file, model, batch = written
    logits, largest = Logits.read(file), 0.0
    assert logits is not None
    for row, tokens in enumerate(json.loads(file.read_text())):
        alone = batch.input_ids[row][batch.attention_mask[row].bool()].tolist()
        for position in range(len(tokens)):
            ids = torch.tensor([alone + tokens[:position]])
            with torch.inference_mode():
                again = model(input_ids=ids).logits[0, -1].float()
            first, second = logits.tokens[row][position][:2]
            margin = logits.logits[row][position][0] - logits.logits[row][position][1]
            largest = max(largest, abs(float(again[first] - again[second]) - margin))
    assert logits.noise_floor >= 0
    if model.dtype == torch.float32:
        assert logits.noise_floor < 1e-4
    else:
        assert 0 < logits.noise_floor < 1
        assert largest < 10 * logits.noise_floor, "token by token it moves about as far as in one pass"


def logits_of(margins: list[float], floor: float) -> Logits:
    """One row: at each position token 10 is best, then 11 by the margin, then 12 by 5 more."""
    return Logits(
        tokens=[[[10, 11, 12] for _ in margins]],
        logits=[[[1.0, 1.0 - margin, -4.0 - margin] for margin in margins]],
        noise_floor=floor,
    )


@pytest.mark.parametrize(
    ("tokens", "kind", "position", "margin", "is_bound"),
    [
        ([10, 11, 10], "tie", 1, 0.01, False),
        ([11, 10, 10], "differs", 0, 0.5, False),
        ([10, 12, 10], "differs", 1, 5.01, False),
        ([10, 77, 10], "differs", 1, 5.01, True),
    ],
)
def test_the_first_difference_has_place_tokens_and_margin(
    tokens: list[int], kind: str, position: int, margin: float, is_bound: bool, tmp_path: Path
) -> None:
    file = tmp_path / "tokens.json"
    reference.logits_file(file).write_text(logits_of([0.5, 0.01, 0.5], 0.02).model_dump_json())
    found = explained([tokens], [[10, 10, 10]], file)
    (difference,) = [Difference(**one) for one in found["differences"]]
    assert (found["fidelity_kind"], found["noise_floor"]) == (kind, 0.02)
    assert (difference.kind, difference.row, difference.position) == (kind, 0, position)
    assert (difference.token, difference.reference_token) == (tokens[position], 10)
    assert (difference.margin, difference.margin_is_bound) == (pytest.approx(margin), is_bound)


def test_equal_tokens_need_no_logits_and_texts_have_none(tmp_path: Path) -> None:
    assert explained([[1, 2]], [[1, 2]], tmp_path / "none.json") == {"fidelity_kind": "equal"}
    found = explained([[1, -1]], [[1, 2]], None)
    assert found["fidelity_kind"] == "differs"
    assert found["differences"][0]["token"] is None
    assert found["differences"][0]["margin"] is None
    assert Repetition(prefill_s=1, decode_s=1, prompt_tokens=1, new_tokens=2, decode_steps=1, **found)


def test_one_row_that_differs_outweighs_rows_at_a_tie(tmp_path: Path) -> None:
    file, one = tmp_path / "tokens.json", logits_of([0.5, 0.01], 0.02)
    both = Logits(tokens=one.tokens * 2, logits=one.logits * 2, noise_floor=0.02)
    reference.logits_file(file).write_text(both.model_dump_json())
    assert explained([[10, 11], [10, 10]], [[10, 10]] * 2, file)["fidelity_kind"] == "tie"
    assert explained([[10, 11], [11, 10]], [[10, 10]] * 2, file)["fidelity_kind"] == "differs"
