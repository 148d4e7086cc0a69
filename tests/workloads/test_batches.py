"""Training batches: the same in every run, translation pairs in NLLB's format, and a stopped run goes on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from workloads.train import loop, pairs
from workloads.train.batches import Batch, Pairs, TrainingData, Windows
from workloads.train.recipe import LLAMA4_LIKE, NLLB_MOE_LIKE, Recipe
from workloads.train.tokens import Stream

TAGS = ("<en>", "<fr>")
DOCUMENTS = [f"<en> {'word ' * (n % 7)}number {n} <fr> {'mot ' * (n % 5)}nombre {n}" for n in range(300)]
SMALL = replace(
    LLAMA4_LIKE,
    vocab_size=64,
    hidden_size=16,
    head_dim=4,
    layers=2,
    experts=4,
    expert_intermediate_size=8,
    shared_expert_intermediate_size=8,
    attention_chunk_size=8,
    sequence_length=16,
    sequences_per_step=4,
    steps=60,
    warmup_steps=10,
)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return pairs.train_tokenizer([text for d in DOCUMENTS for text in pairs.split(d, TAGS)], 400)


@pytest.fixture(scope="module")
def data(tokenizer: PreTrainedTokenizerFast) -> Pairs:
    encoded = pairs.EncodedPairs.encode(DOCUMENTS, TAGS, tokenizer, longest=64)
    return Pairs(replace(NLLB_MOE_LIKE, sequences_per_step=8), encoded, encoded)


def test_a_source_has_its_language_first_and_its_end_last(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = tokenizer("Open the file")["input_ids"]
    assert ids[0] == tokenizer.convert_tokens_to_ids("eng_Latn") == pairs.SOURCE_LANGUAGE_ID
    assert ids[-1] == tokenizer.eos_token_id == pairs.EOS_ID
    assert tokenizer.pad_token_id == pairs.PAD_ID
    assert tokenizer.convert_tokens_to_ids("fra_Latn") == pairs.TARGET_LANGUAGE_ID


@pytest.mark.parametrize("text", ["Êtes-vous sûr ?", "« %s » : 3 points...", "a  b", "日本"])
def test_text_survives_the_tokenizer(text: str, tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True).strip() == text


def test_documents_split_into_their_two_sides() -> None:
    assert pairs.split("<en> a b <fr> c d", TAGS) == ("a b", "c d")
    assert pairs.split("<en> a b <fr>", TAGS) == ("a b", "")


def test_pairs_longer_than_the_limit_are_left_out(tokenizer: PreTrainedTokenizerFast) -> None:
    kept = pairs.EncodedPairs.encode([*DOCUMENTS, f"<en> {'word ' * 90}<fr> mot"], TAGS, tokenizer, longest=64)
    assert len(kept.sources) == len(kept.targets) == len(DOCUMENTS)


def test_the_decoder_predicts_the_translation_behind_the_forced_language(
    data: Pairs, tokenizer: PreTrainedTokenizerFast
) -> None:
    batch = next(data.batches(0))
    seen, masks = batch.inputs["decoder_input_ids"], batch.valid
    assert set(seen[:, 0].tolist()) == {pairs.EOS_ID}
    assert set(seen[:, 1].tolist()) == {pairs.TARGET_LANGUAGE_ID}
    assert torch.equal(batch.targets[:, :-1][masks[1][:, 1:]], seen[:, 1:][masks[1][:, 1:]])
    counted = batch.targets[0][batch.weights[0] > 0]
    assert tokenizer.decode(counted, skip_special_tokens=True).strip().startswith(("nombre", "mot"))
    assert counted[-1] == pairs.EOS_ID
    assert batch.tokens == int(masks[0].sum() + masks[1].sum())


def test_a_step_has_pairs_of_similar_length(data: Pairs) -> None:
    padding = [1 - float(mask.float().mean()) for batch in islice(data.batches(0), 16) for mask in batch.valid]
    assert np.mean(padding) < 0.15


@pytest.mark.parametrize("first", [1, 5, 16, 19])
def test_batches_from_a_step_on_are_those_of_a_run_from_the_start(data: Pairs, first: int) -> None:
    for ours, theirs in zip(islice(data.batches(first), 3), islice(data.batches(0), first, first + 3), strict=True):
        assert torch.equal(ours.targets, theirs.targets)
    windows = _windows()
    for ours, theirs in zip(
        islice(windows.batches(first), 3), islice(windows.batches(0), first, first + 3), strict=True
    ):
        assert torch.equal(ours.targets, theirs.targets)


def _windows() -> Windows:
    ids = (np.arange(2000) * 7 % 61).astype(np.uint16)
    text = Stream(ids, np.ones(len(ids), dtype=np.float32))
    return Windows(SMALL, text, text)


@dataclass(frozen=True)
class Stopping:
    """Data whose batches end in an interrupt, as if the machine were needed."""

    inner: TrainingData
    steps: int

    def batches(self, first: int) -> Iterator[Batch]:
        yield from islice(self.inner.batches(first), self.steps - first)
        raise KeyboardInterrupt

    def held_out(self) -> Iterator[Batch]:
        return islice(self.inner.held_out(), 1)

    def routed(self) -> Iterator[Batch]:
        return self.inner.routed()

    def sizes(self) -> dict[str, int]:
        return self.inner.sizes()


def test_a_stopped_run_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    whole, _ = loop.train(SMALL, Stopping(_windows(), 10**6), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        loop.train(SMALL, Stopping(_windows(), 55), tmp_path / "parts")
    parts, result = loop.train(SMALL, Stopping(_windows(), 10**6), tmp_path / "parts")
    for ours, theirs in zip(parts.parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert result["training_tokens"] == 60 * 4 * 16
    assert len((tmp_path / "parts" / "training_log.jsonl").read_text().splitlines()) == 2
    assert not (tmp_path / "parts" / loop.UNFINISHED).exists()


def test_the_learning_rate_stays_until_the_plateaus_end() -> None:
    recipe: Recipe = replace(SMALL, steps=1000, warmup_steps=10, plateau=0.6, learning_rate=1.0)
    rates = [loop.learning_rate(recipe, step) for step in range(1000)]
    assert rates[4] == 0.5
    assert set(rates[10:601]) == {1.0}
    assert all(a > b for a, b in pairwise(rates[601:]))
    assert rates[-1] == pytest.approx(recipe.final_learning_rate, abs=1e-4)


def test_a_restart_begins_at_half_the_height_and_changes_nothing_before() -> None:
    once = replace(SMALL, steps=1000, warmup_steps=10, plateau=0.5, learning_rate=1.0)
    twice = replace(once, steps=1500, restart_step=1000)
    assert [loop.learning_rate(twice, step) for step in range(1000)] == [
        loop.learning_rate(once, s) for s in range(1000)
    ]
    assert loop.learning_rate(twice, 1000) == 0.5
    assert loop.learning_rate(twice, 1499) == pytest.approx(once.final_learning_rate, abs=1e-4)
