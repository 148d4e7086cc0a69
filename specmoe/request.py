"""One ``generate`` call from checked arguments to the returned tensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.modeling_outputs import ModelOutput

from specmoe.batch import OnTokens, Rows
from specmoe.inputs import Limits, check_prompts, infer_mask, resolve_limits
from specmoe.sampling import Greedy, Sampler, Sampling
from specmoe.stats import GenerationStats


@dataclass
class GenerateOutput(ModelOutput):  # type: ignore[misc]
    """``sequences`` (long [B, prompt + new]) as transformers returns them; ``stats`` is what the call measured."""

    sequences: torch.Tensor | None = None
    stats: GenerationStats | None = None


@dataclass(frozen=True)
class Request:
    """What a call asks for: ``prompts`` are the rows of ``input_ids`` (long [B, S]) without padding, on the device."""

    input_ids: torch.Tensor
    prompts: list[torch.Tensor]
    limits: Limits
    sampler: Sampler

    @classmethod
    def of(
        cls,
        model: PreTrainedModel,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        settings: dict[str, Any],
        seed: int,
    ) -> Request:
        """Check the prompts of a call with merged generation ``settings`` (see ``specmoe.generation``).

        Raises:
            ValueError: shapes that do not match, an empty row, padding on the right, a limit below one new token,
                or a sampling value out of range.
        """
        mask = infer_mask(input_ids, settings) if attention_mask is None else attention_mask
        check_prompts(input_ids, mask)
        limits = resolve_limits(input_ids.shape, settings, getattr(model.config, "max_position_embeddings", None))
        prompts = [row[keep.bool()].to(model.device) for row, keep in zip(input_ids, mask, strict=True)]
        sampler: Sampler = Sampling.of(settings, seed, model.device) if settings["do_sample"] else Greedy()
        return cls(input_ids, prompts, limits, sampler)

    @property
    def longest(self) -> int:
        """Tokens of the longest row when it has all its new tokens."""
        return max(len(p) + new for p, new in zip(self.prompts, self.limits.new_tokens, strict=True))

    @property
    def padding(self) -> torch.Tensor:
        """Tokens of padding on the left of each row, long [B]."""
        width = self.input_ids.shape[1]
        return torch.tensor([width - len(p) for p in self.prompts], device=self.prompts[0].device)

    def first_rows(self, first: torch.Tensor, on_tokens: OnTokens | None) -> Rows:
        """All rows after the prefill, each with its ``first`` token (long [B])."""
        limits, tokens = self.limits, first.tolist()
        remaining = [0 if t in limits.stop else n - 1 for t, n in zip(tokens, limits.new_tokens, strict=True)]
        index = torch.arange(len(tokens), device=first.device)
        texts = [prompt.tolist() for prompt in self.prompts]
        rows = Rows(first, torch.tensor(remaining).to(first), index, texts, limits.stop, on_tokens)
        for row, token in enumerate(tokens):
            rows.append(row, [token])
        return rows

    def output(self, rows: Rows, stats: GenerationStats) -> GenerateOutput:
        """Prompts and new tokens, rows that stopped early filled with the pad token; counts the tokens in ``stats``."""
        new = [tokens[len(prompt) :] for tokens, prompt in zip(rows.tokens, self.prompts, strict=True)]
        stats.new_tokens = sum(map(len, new))
        width = max(map(len, new))
        padded = torch.tensor([tokens + [self.limits.pad] * (width - len(tokens)) for tokens in new])
        return GenerateOutput(torch.cat([self.input_ids, padded.to(self.input_ids)], dim=1), stats)
