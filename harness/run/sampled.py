"""The reference model; for sampled cells its own draws for the same prompts, and scores of what systems draw.

What a score is and how scores are compared is said in ``reports.results.distribution``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from baselines.contract import Request
from baselines.decoding import Decoding
from baselines.hf import sequences_of
from harness.run.job import Answer, Job
from harness.run.reference import forced_logits
from reports.results.distribution import compare
from specmoe.generation import plain_config
from specmoe.model.wrappers import load_whole
from specmoe.sampling import Sampling
from workloads.requests import Batch

REFERENCE_TOKENS = 4096
"""Draws of the reference for one batch, at least: it repeats the prompts as often as that takes."""
CHUNK_ELEMENTS = 1 << 26  # of logits held at a time
_REFERENCE_SEED = 1 << 20  # away from the seeds of repetitions
Rows = list[list[int]]


def reference_model(job: Job) -> Any:
    """The resident model, whose tokens follow no setting of generation_config.json."""
    model = load_whole(job.paths.model, getattr(torch, job.cell.dtype))
    model.generation_config = plain_config(model)
    return model


def score(job: Job, batch: Batch) -> Answer:
    """Compare what a system drew with the reference's own draws: one set of figures for each repetition.

    Raises:
        ValueError: the cell decodes greedily, or no tokens are given.
    """
    decoding = job.cell.decoding
    if decoding is None or job.paths.sampled is None:
        raise ValueError("only the tokens of a sampled cell have scores")
    scorer, answer = Scorer(reference_model(job), batch, decoding), Answer()
    reference = json.loads(job.paths.reference.read_text())
    for number, rows in enumerate(json.loads(job.paths.sampled.read_text())):
        found = compare(scorer.scores(rows, decoding.again(number).seed), reference)
        answer.repetitions.append({f"distribution_{name}": value for name, value in asdict(found).items()})
    return answer


@dataclass
class Scorer:
    """The reference model with one batch of prompts, decoded as ``decoding`` says."""

    model: Any
    batch: Batch
    decoding: Decoding

    def reference_scores(self) -> list[float]:
        """Scores of the reference's own draws, at least ``REFERENCE_TOKENS`` of them."""
        each = sum(self.batch.output_tokens)
        scores: list[float] = []
        for number in range(math.ceil(REFERENCE_TOKENS / each)):
            seed = self.decoding.seed + _REFERENCE_SEED + number
            scores += self.scores(self._draw(self.decoding.model_copy(update={"seed": seed})), seed)
        return scores

    @torch.inference_mode()
    def scores(self, rows: Rows, seed: int) -> list[float]:
        """The score of every token in ``rows``, the new tokens of each row of the batch; ``seed`` is of the shares.

        A first token that the model is forced to give is left out.
        """
        generator = torch.Generator().manual_seed(seed)
        skipped = 1 if getattr(self.model.generation_config, "forced_bos_token_id", None) is not None else 0
        found: list[float] = []
        for start, stop in self._chunks(rows):
            part = rows[start:stop]
            logits = self._logits(part, slice(start, stop))
            for row, tokens in enumerate(part):
                chosen = torch.tensor(tokens)[skipped:]
                probs = self._sampler.probabilities(logits[row, skipped : len(tokens)]).double()  # [n, V]
                own = probs.gather(1, chosen[:, None])
                above = torch.where(probs > own, probs, 0.0).sum(dim=1)
                equal = torch.where(probs == own, probs, 0.0).sum(dim=1)  # ties share one place
                share = torch.rand(len(chosen), generator=generator, dtype=torch.float64)
                found += (above + share * equal).tolist()
        return found

    @property
    def _sampler(self) -> Sampling:
        return Sampling(self.decoding.temperature, self.decoding.top_k, self.decoding.top_p)

    def _draw(self, decoding: Decoding) -> Rows:
        """New tokens of every row, drawn by transformers' own loop."""
        batch, longest = self.batch, max(self.batch.output_tokens)
        lengths = batch.output_tokens
        request = Request(batch.input_ids, batch.attention_mask, longest, lambda: None, lengths, decoding=decoding)
        return [row.tolist() for row in request.cut(sequences_of(self.model, request)[:, -longest:])]

    def _logits(self, rows: Rows, which: slice) -> torch.Tensor:
        """Logits [b, n, V] of the new tokens of some rows of the batch, teacher-forced."""
        ids, mask = self.batch.input_ids[which], self.batch.attention_mask[which]
        longest = max(map(len, rows))
        new = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        return forced_logits(self.model, ids, mask, new)

    def _chunks(self, rows: Sequence[list[int]]) -> list[tuple[int, int]]:
        """Ranges of rows whose logits fit into ``CHUNK_ELEMENTS``."""
        vocabulary = int(self.model.get_input_embeddings().num_embeddings)
        each = max(1, CHUNK_ELEMENTS // (max(map(len, rows)) * vocabulary))
        return [(start, min(start + each, len(rows))) for start in range(0, len(rows), each)]
