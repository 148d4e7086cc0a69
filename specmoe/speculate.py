"""The decode loop: draft, verify, accept, for a batch whose rows move at their own pace.

One cycle (paper, figure of the two phases):

1. ``draft``: gamma tokens per row from the target itself, with pinned experts only. No bytes move.
2. ``verify``: one target pass over gamma + 1 positions of every row. Each distinct expert moves once.
3. ``accept``: the longest prefix on which the target agrees, plus one token of the target's own.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from specmoe.experts import ExpertsRuntime
from specmoe.ragged_cache import RaggedCache
from specmoe.stats import GenerationStats


@dataclass
class Rows:
    """The rows still generating.

    ``last`` (long [B]) is each row's newest token, not yet in the cache; ``room`` (long [B]) how many
    more it may gain; ``index`` (long [B]) its place in the request; ``output`` collects tokens per request row.
    """

    last: torch.Tensor
    room: torch.Tensor
    index: torch.Tensor
    output: list[list[int]]
    stop: Collection[int]


def prefill(
    model: PreTrainedModel, runtime: ExpertsRuntime, cache: RaggedCache, prompts: list[torch.Tensor]
) -> torch.Tensor:
    """Run the prompts (one long [n_i] per row) through the target; returns each row's first token, long [B]."""
    lengths = torch.tensor([len(p) for p in prompts], device=model.device)
    ids = torch.nn.utils.rnn.pad_sequence(prompts, batch_first=True)  # [B, S], padded on the right
    valid = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]  # [B, S]
    ends, place = (lengths - 1).unique(return_inverse=True)
    logits = _forward(model, runtime, cache, ids, valid, keep=ends)  # [B, len(ends), V]
    cache.commit(lengths)
    return logits[torch.arange(len(prompts), device=ids.device), place].argmax(-1)


def decode(
    model: PreTrainedModel, runtime: ExpertsRuntime, cache: RaggedCache, rows: Rows, gamma: int, stats: GenerationStats
) -> None:
    """Generate until every row is full or stopped; tokens go to ``rows.output``."""
    stats.drafted_by_position, stats.accepted_by_position = [0] * gamma, [0] * gamma
    _drop_finished(rows, cache)
    while len(rows.index):
        length = min(gamma, int(rows.room.max()) - 1)
        drafted = draft(model, runtime, cache, rows, length, stats)  # [B, g]
        targets = verify(model, runtime, cache, rows, drafted, stats)  # [B, g + 1]
        accepted = accept(drafted, targets)  # [B]
        _commit(rows, cache, drafted, targets, accepted, stats)
        _drop_finished(rows, cache)


def draft(
    model: PreTrainedModel, runtime: ExpertsRuntime, cache: RaggedCache, rows: Rows, length: int, stats: GenerationStats
) -> torch.Tensor:
    """Greedy tokens from the pinned experts, long [B, length]; leaves the cache's lengths as they were."""
    started = time.perf_counter()
    drafted = [rows.last]
    runtime.mode = "draft"
    for _ in range(length):
        valid = (rows.room > len(drafted))[:, None]  # rows too near their end draft no further
        drafted.append(_forward(model, runtime, cache, drafted[-1][:, None], valid)[:, -1].argmax(-1))
        cache.commit(torch.ones_like(rows.last))
    runtime.mode = "target"
    cache.commit(torch.full_like(rows.last, -length))
    stats.draft_s += time.perf_counter() - started
    return torch.stack(drafted[1:], dim=1) if length else rows.last.new_empty(len(rows.last), 0)


def verify(
    model: PreTrainedModel,
    runtime: ExpertsRuntime,
    cache: RaggedCache,
    rows: Rows,
    drafted: torch.Tensor,
    stats: GenerationStats,
) -> torch.Tensor:
    """The target's own next tokens after ``last`` and after each drafted token: long [B, g + 1]."""
    started = time.perf_counter()
    ids = torch.cat([rows.last[:, None], drafted], dim=1)  # [B, g + 1]
    valid = torch.arange(ids.shape[1], device=ids.device) < rows.room[:, None]
    targets = _forward(model, runtime, cache, ids, valid).argmax(-1)
    stats.target_passes += 1
    stats.row_steps += len(ids)
    stats.verify_s += time.perf_counter() - started
    return targets


def accept(drafted: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Length of the longest prefix of ``drafted`` [B, g] that equals ``targets`` [B, g + 1]: long [B]."""
    return (drafted == targets[:, :-1]).long().cumprod(dim=1).sum(dim=1)


def _forward(
    model: PreTrainedModel,
    runtime: ExpertsRuntime,
    cache: RaggedCache,
    ids: torch.Tensor,
    valid: torch.Tensor,
    keep: torch.Tensor | int = 0,
) -> torch.Tensor:
    """Logits [B, Q or len(keep), V] of ids [B, Q] placed after each row's committed tokens."""
    runtime.valid = valid.flatten()
    output = model(
        input_ids=ids,
        attention_mask=cache.attention_mask(ids.shape[1], model.dtype, boolean=model._supports_sdpa),
        position_ids=cache.lengths.positions(ids.shape[1]),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=keep,
    )
    logits: torch.Tensor = output.logits
    return logits


def _commit(
    rows: Rows,
    cache: RaggedCache,
    drafted: torch.Tensor,
    targets: torch.Tensor,
    accepted: torch.Tensor,
    stats: GenerationStats,
) -> None:
    """Append each row's accepted tokens and one more, cut at its room and at a stop token."""
    gained = []
    for row, (new, count, room) in enumerate(zip(targets.tolist(), accepted.tolist(), rows.room.tolist(), strict=True)):
        tokens = new[: min(count + 1, room)]
        stopped = next((i for i, token in enumerate(tokens) if token in rows.stop), None)
        if stopped is not None:
            tokens = tokens[: stopped + 1]
            rows.room[row] = len(tokens)
        rows.output[int(rows.index[row])].extend(tokens)
        gained.append(len(tokens))
        stats.decode_tokens += len(tokens)
        for place in range(min(drafted.shape[1], room)):
            stats.drafted_by_position[place] += 1
            stats.accepted_by_position[place] += place < count
    step = torch.tensor(gained, device=rows.last.device)
    rows.last = targets.gather(1, step[:, None] - 1).squeeze(1)
    rows.room = rows.room - step
    cache.commit(step)


def _drop_finished(rows: Rows, cache: RaggedCache) -> None:
    """Rows without room leave the batch, the cache included."""
    going = rows.room > 0
    if not bool(going.all()):
        kept = going.nonzero().flatten()
        cache.select(kept)
        rows.last, rows.room, rows.index = rows.last[kept], rows.room[kept], rows.index[kept]
