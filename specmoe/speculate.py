"""The decode loop: draft, verify, accept and commit, for a batch whose rows advance at different speeds.

One cycle (paper, figure of the two phases):

1. *draft*: up to gamma tokens per row, from the target itself with draft experts only. No expert is loaded.
2. *verify*: one target pass over gamma + 1 positions of every row. Each distinct expert moves once.
3. *accept*: the longest prefix the target agrees with, plus one token of the target's own.
4. *commit*: these tokens join the rows and the KV cache; finished rows leave the batch.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import torch

from specmoe.batch import Rows, Run, encode, forward
from specmoe.control.controller import Controller, CycleChoice
from specmoe.drafters import Drafter
from specmoe.model.nan_weights import warn_of_nan
from specmoe.model.pass_state import Pass, prompt_pass
from specmoe.sampling import Proposal


def prefill(run: Run, prompts: list[torch.Tensor]) -> torch.Tensor:
    """Run the prompts (one long [n_i] per row) through the target; returns each row's first token, long [B].

    The encoder of an encoder-decoder runs before them.
    """
    encode(run)
    lengths = torch.tensor([len(p) for p in prompts], device=run.model.device)
    ids = torch.nn.utils.rnn.pad_sequence(prompts, batch_first=True)  # [B, S], padded on the right
    valid = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]  # [B, S]
    ends, which = (lengths - 1).unique(return_inverse=True)
    with run.timeline.span("compute", "prefill", tokens=int(valid.sum())):
        logits = forward(run, ids, prompt_pass(valid, run.state.options), keep=ends)  # [B, len(ends), V]
        run.state.wait_for_copies()  # so that no draft waits
    run.cache.commit(lengths)
    run.recorder.ended("prefill", torch.arange(len(prompts)), lengths - 1)
    logits = logits[torch.arange(len(prompts), device=ids.device), which]  # [B, V]
    warn_of_nan(run.model, logits)
    first = run.sampler.draw(logits)[0]
    return first if run.forced_first is None else torch.full_like(first, run.forced_first)


def decode(run: Run, rows: Rows, drafter: Drafter, controller: Controller) -> None:
    """Generate until every row is full or has stopped; tokens are appended to ``rows.tokens``."""
    rows = drop_finished(run, rows)
    while len(rows):
        rows = advance(run, rows, drafter, controller)


def advance(run: Run, rows: Rows, drafter: Drafter, controller: Controller) -> Rows:
    """One cycle; returns the rows that may still gain tokens."""
    with run.meter.cycle(len(rows)) as cycle:
        choice = controller.choose(rows.remaining - 1)
        proposal = draft(run, rows, drafter, choice)
        logits = verify(run, rows, proposal)
        accepted, next_token = run.sampler.accept(proposal, logits)
        rows = commit(run, rows, proposal, accepted, next_token)
        controller.learn(cycle, proposal.lengths, accepted)
        return drop_finished(run, rows)


def draft(run: Run, rows: Rows, drafter: Drafter, choice: CycleChoice) -> Proposal:
    """Propose up to ``choice.lengths`` (long [B]) tokens per row; a prefetcher may load experts meanwhile."""
    gamma, prefetcher = int(choice.lengths.max()), run.state.prefetcher
    run.state.resize_draft(choice.draft_experts, choice.refresh_interval)
    with run.meter.drafting(gamma, choice.draft_experts, choice.refresh_interval, choice.reason):
        if prefetcher is not None and gamma:
            prefetcher.begin(gamma, run.meter.draft_step_s)
        return drafter.propose(run, rows, choice.lengths)


def verify(run: Run, rows: Rows, proposal: Proposal) -> torch.Tensor:
    """The target's logits [B, g + 1, V] after each row's last token and after each proposed one."""
    positions = len(rows) + int(proposal.lengths.sum())
    with run.meter.verifying(positions, len(rows)) as cycle:
        ids = torch.cat([rows.last[:, None], proposal.tokens], dim=1)  # [B, g + 1]
        valid = torch.arange(ids.shape[1], device=ids.device) <= proposal.lengths[:, None]
        with run.timeline.span("compute", "verify", rows=len(rows), positions=positions):
            logits = forward(run, ids, Pass("target", valid.flatten()))
    if run.state.prefetcher is not None:
        run.state.prefetcher.end(cycle.verify_s)
    return logits


def commit(run: Run, rows: Rows, proposal: Proposal, accepted: torch.Tensor, next_token: torch.Tensor) -> Rows:
    """Append each row's accepted tokens (the first ``accepted``, long [B]) and ``next_token`` (long [B])."""
    offsets = torch.arange(proposal.tokens.shape[1] + 1, device=accepted.device)
    run.state.count_accepted((offsets <= accepted[:, None]).flatten())
    run.recorder.ended("decode", rows.index, accepted)
    gained, stopped = [], []
    drafted, counts, last = proposal.tokens.tolist(), accepted.tolist(), next_token.tolist()
    for row in range(len(rows)):
        tokens, has_stopped = _cut_at_stop([*drafted[row][: counts[row]], last[row]], rows.stop)
        rows.append(row, tokens)
        gained.append(len(tokens))
        stopped.append(has_stopped)
    run.meter.committed(proposal.lengths.tolist(), counts, gained, stopped)
    step = torch.tensor(gained, device=rows.last.device)
    run.cache.commit(step)
    remaining = (rows.remaining - step).masked_fill(torch.tensor(stopped, device=step.device), 0)
    return replace(rows, last=next_token, remaining=remaining)


def drop_finished(run: Run, rows: Rows) -> Rows:
    """The rows that may still gain tokens; the others leave the KV cache as well."""
    unfinished = rows.remaining > 0
    if bool(unfinished.all()):
        return rows
    kept = unfinished.nonzero().flatten() if run.most_rows is None else holes_filled(unfinished)
    run.cache.select(kept)
    return rows.select(kept)


def holes_filled(unfinished: torch.Tensor) -> torch.Tensor:
    """The rows where ``unfinished`` (bool [B]), long [B']: the last ones in place of those that leave, so few move."""
    count = int(unfinished.sum())
    kept = torch.arange(count, device=unfinished.device)
    kept[~unfinished[:count]] = count + unfinished[count:].nonzero().flatten()
    return kept


def _cut_at_stop(tokens: list[int], stop: Collection[int]) -> tuple[list[int], bool]:
    """``tokens`` up to and including the first stop token, and whether there is one."""
    for i, token in enumerate(tokens):
        if token in stop:
            return tokens[: i + 1], True
    return tokens, False
