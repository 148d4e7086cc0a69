"""One ``generate`` call from checked arguments to the returned tensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.modeling_outputs import ModelOutput

from specmoe.batch import OnTokens, Rows, Run
from specmoe.errors import OptionError
from specmoe.inputs import Limits, check_left_padding, check_rows, check_vocabulary, infer_mask, resolve_limits
from specmoe.meter import Meter
from specmoe.model import families
from specmoe.model.kv_cache import RaggedCache
from specmoe.model.pass_state import PassState
from specmoe.model.positions import check_positions
from specmoe.model.source import Source, SourceCache
from specmoe.offload.link import Link
from specmoe.recorder import NoRecorder, Recorder
from specmoe.sampling import Greedy, Sampler, Sampling
from specmoe.stats import GenerationStats
from specmoe.timeline import Timeline


@dataclass
class GenerateOutput(ModelOutput):  # type: ignore[misc]
    """``sequences`` (long [B, prompt + new]) as transformers returns them; ``stats`` is what the call measured."""

    sequences: torch.Tensor | None = None
    stats: GenerationStats | None = None


@dataclass(frozen=True)
class Request:
    """What a call asks for.

    The returned sequences begin with ``opening`` (long [B, P]): a decoder's prompts as given, or the start tokens of
    an encoder-decoder.  ``prompts`` are its rows without padding, on the device.  ``source`` is what an encoder reads,
    ``forced_first`` the first new token of every row, ``prompt_tokens`` counts the tokens given without padding.
    """

    opening: torch.Tensor
    prompts: list[torch.Tensor]
    prompt_tokens: int
    limits: Limits
    sampler: Sampler
    source: Source | None = None
    forced_first: int | None = None

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
            ValueError: shapes that do not match, an empty row, a token outside the vocabulary, padding on the right of
                a decoder's prompt, a limit below one new token, or a sampling value out of range.
            OptionError: an encoder-decoder without one start token for all rows.
            UnsupportedModelError: a batch that cannot be followed exactly.
        """
        family = families.encoder_decoder(model.config)
        mask = attention_mask
        if mask is None:  # transformers infers none for an encoder-decoder, which then reads padding too
            mask = infer_mask(input_ids, settings) if family is None else torch.ones_like(input_ids)
        check_rows(input_ids, mask)
        read = mask if family is None else torch.ones_like(mask)  # an encoder reads padding, a decoder does not
        check_vocabulary(input_ids, read, model.get_input_embeddings().num_embeddings)
        opening, source, forced_first = input_ids, None, None
        if family is None:
            check_left_padding(mask)
            prompts = [row[keep.bool()].to(model.device) for row, keep in zip(input_ids, mask, strict=True)]
        else:
            family.check_rows(model.config, len(input_ids))
            opening = torch.full_like(input_ids[:, :1], _start_token(settings))
            prompts = list(opening.to(model.device))
            source = Source(input_ids.to(model.device), mask.to(model.device))
            forced_first = settings["forced_bos_token_id"]
        limits = resolve_limits(opening.shape, settings, getattr(model.config, "max_position_embeddings", None))
        sampler: Sampler = Sampling.of(settings, seed, model.device) if settings["do_sample"] else Greedy()
        return cls(opening, prompts, int(mask.sum()), limits, sampler, source, forced_first)

    def open_cache(self, model: PreTrainedModel, gamma: int) -> RaggedCache | SourceCache:
        """An empty cache for every row with all its new tokens and ``gamma`` drafted ones.

        Raises:
            UnsupportedModelError: positions that change with length, and rows that reach the change.
        """
        longest = max(len(p) + new for p, new in zip(self.prompts, self.limits.new_tokens, strict=True)) + gamma + 1
        config = model.config.get_text_config()
        check_positions(config, min(map(len, self.prompts)), longest)
        if self.source is not None:
            return SourceCache(model, self.source, longest)
        padding = torch.tensor([self.opening.shape[1] - len(p) for p in self.prompts], device=model.device)
        return RaggedCache(config, len(self.prompts), longest, model.device, padding)

    def run(
        self,
        model: PreTrainedModel,
        state: PassState,
        link: Link,
        gamma: int,
        stats: GenerationStats,
        timeline: Timeline | None = None,
        recorder: Recorder | None = None,
    ) -> Run:
        """What the steps of this call work with, with an empty cache as ``open_cache`` gives it.

        Raises:
            UnsupportedModelError: as ``open_cache`` does.
        """
        cache = self.open_cache(model, gamma)
        link.timeline = timeline = timeline or Timeline(enabled=False)
        meter = Meter(stats, link, state, timeline)
        return Run(model, state, cache, self.sampler, meter, timeline, recorder or NoRecorder(), self.forced_first)

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
        return GenerateOutput(torch.cat([self.opening, padded.to(self.opening)], dim=1), stats)


def _start_token(settings: dict[str, Any]) -> int:
    """What every row of an encoder-decoder starts with."""
    start = settings["decoder_start_token_id"]
    start = settings["bos_token_id"] if start is None else start
    if not isinstance(start, int):
        raise OptionError(
            f"decoder_start_token_id is {start}, not one token for all rows: set it in generation_config.json, or pass "
            "it to generate"
        )
    return start
