"""The decode loop: draft, verify, accept, for a batch whose rows move at their own pace.

One cycle (paper, figure of the two phases):

1. *draft*: up to gamma tokens per row, from the target itself with draft experts only. No expert is asked for
   that is not on the device.
2. *verify*: one target pass over gamma + 1 positions of every row. Each distinct expert moves once.
3. *accept*: the longest prefix the target agrees with, plus one token of the target's own.
"""

from __future__ import annotations

import time

import torch

from specmoe.batch import Rows, Run, forward
from specmoe.control.controller import Controller, CycleChoice
from specmoe.drafters import Drafter
from specmoe.model.pass_state import INITIAL_TAIL
from specmoe.offload.link import LinkStats
from specmoe.sampling import Proposal
from specmoe.stats import CycleStats


def prefill(run: Run, prompts: list[torch.Tensor]) -> torch.Tensor:
    """Run the prompts (one long [n_i] per row) through the target; returns each row's first token, long [B]."""
    lengths = torch.tensor([len(p) for p in prompts], device=run.model.device)
    ids = torch.nn.utils.rnn.pad_sequence(prompts, batch_first=True)  # [B, S], padded on the right
    places = torch.arange(ids.shape[1], device=ids.device)
    valid = places < lengths[:, None]  # [B, S]
    if run.state.options.initial == "prefill-tail":
        run.state.counted = (places >= lengths[:, None] - INITIAL_TAIL).flatten()
    ends, place = (lengths - 1).unique(return_inverse=True)
    run.state.is_prompt = True
    try:
        with run.timeline.span("compute", "prefill", tokens=int(valid.sum())):
            logits = forward(run, ids, valid, keep=ends)  # [B, len(ends), V]
    finally:
        run.state.counted, run.state.is_prompt = None, False
    run.cache.commit(lengths)
    if run.state.recorder is not None:
        run.state.recorder.ended("prefill", torch.arange(len(prompts)), lengths - 1)
    return run.sampler.draw(logits[torch.arange(len(prompts), device=ids.device), place])[0]


def decode(run: Run, rows: Rows, drafter: Drafter, controller: Controller) -> None:
    """Generate until every row is full or stopped; tokens go to ``rows.tokens``."""
    _drop_finished(run, rows)
    while len(rows):
        started, link_before = time.perf_counter(), run.link.snapshot()
        choice = controller.choose(rows.index, (rows.remaining - 1).clamp_min(0))
        cycle = _begin(run, rows, choice)
        proposal = draft(run, rows, drafter, choice.lengths, cycle)
        logits = verify(run, rows, proposal, cycle)
        accepted, next_token = run.sampler.accept(proposal, logits)
        if run.state.recorder is not None:
            run.state.recorder.ended("decode", rows.index, accepted)
        _commit(run, rows, proposal, accepted, next_token, cycle)
        _count_link(run, cycle, link_before)
        controller.learn(cycle, rows.index, proposal.lengths, accepted)
        _drop_finished(run, rows)
        _end(run, cycle, started)


def draft(run: Run, rows: Rows, drafter: Drafter, lengths: torch.Tensor, cycle: CycleStats) -> Proposal:
    """Up to ``lengths`` (long [B]) proposed tokens per row; while it runs, a prefetcher may move what it asks for."""
    started, prefetcher = time.perf_counter(), run.state.prefetcher
    if prefetcher is not None and cycle.gamma:
        before = next((c for c in reversed(run.stats.cycles) if c.gamma), None)
        prefetcher.begin(cycle.gamma, before.draft_s / before.gamma if before else None)
    link = run.link.snapshot()
    proposal = drafter.propose(run, rows, lengths)
    cycle.draft_s, cycle.early_bytes = time.perf_counter() - started, run.link.since(link).moved_bytes
    return proposal


def verify(run: Run, rows: Rows, proposal: Proposal, cycle: CycleStats) -> torch.Tensor:
    """The target's logits [B, g + 1, V] after the row's last token and after each proposed one."""
    started, prefetcher = time.perf_counter(), run.state.prefetcher
    link, experts, refresh_s = run.link.snapshot(), run.state.residency.snapshot(), run.state.refresh_s
    ids = torch.cat([rows.last[:, None], proposal.tokens], dim=1)  # [B, g + 1]
    valid = torch.arange(ids.shape[1], device=ids.device) <= proposal.lengths[:, None]
    with run.timeline.span("compute", "verify", rows=len(ids), positions=int(valid.sum())):
        logits = forward(run, ids, valid)
    cycle.verify_s, cycle.wait_s = time.perf_counter() - started, run.link.since(link).wait_s
    if prefetcher is not None:
        prefetcher.end(cycle.verify_s)
    asked = run.state.residency.since(experts)
    cycle.positions, cycle.requests, cycle.hits = int(valid.sum()), asked.requests, asked.hits
    cycle.refresh_s = run.state.refresh_s - refresh_s
    run.stats.target_passes += 1
    run.stats.row_steps += len(ids)
    return logits


def _begin(run: Run, rows: Rows, choice: CycleChoice) -> CycleStats:
    """Put the cycle's choice in force."""
    selection = run.state.selection
    if selection is not None:
        selection.resize(choice.draft_experts)
        selection.interval = choice.refresh_interval
    gamma = int(choice.lengths.max())
    return CycleStats(gamma, choice.draft_experts, choice.refresh_interval, len(rows), reason=choice.reason)


def _commit(
    run: Run, rows: Rows, proposal: Proposal, accepted: torch.Tensor, next_token: torch.Tensor, cycle: CycleStats
) -> None:
    """Append each row's accepted tokens and the target's next one, cut at a stop token."""
    places = torch.arange(proposal.tokens.shape[1] + 1, device=accepted.device)
    run.state.accepted((places <= accepted[:, None]).flatten())
    gained, stats = [], run.stats
    drafted, wanted = proposal.tokens.tolist(), proposal.lengths.tolist()
    for row, (count, last) in enumerate(zip(accepted.tolist(), next_token.tolist(), strict=True)):
        tokens = [*drafted[row][:count], last]
        stopped = next((i for i, token in enumerate(tokens) if token in rows.stop), None)
        if stopped is not None:
            tokens = tokens[: stopped + 1]
            rows.remaining[row] = len(tokens)
        rows.append(row, tokens)
        gained.append(len(tokens))
        mattered = wanted[row] if stopped is None else min(wanted[row], len(tokens))
        kept = min(count, len(tokens))
        cycle.drafted, cycle.accepted = cycle.drafted + mattered, cycle.accepted + kept
        for place in range(mattered):
            stats.drafted_by_position[place] += 1
            stats.accepted_by_position[place] += place < kept
    step = torch.tensor(gained, device=rows.last.device)
    rows.last = next_token
    rows.remaining = rows.remaining - step
    run.cache.commit(step)
    cycle.tokens = sum(gained)
    stats.decode_tokens += cycle.tokens


def _drop_finished(run: Run, rows: Rows) -> None:
    """Rows with no tokens remaining leave the batch and the cache."""
    going = rows.remaining > 0
    if not bool(going.all()):
        kept = going.nonzero().flatten()
        run.cache.select(kept)
        rows.select(kept)


def _count_link(run: Run, cycle: CycleStats, before: LinkStats) -> None:
    """Book what the link did during the cycle, drafting included."""
    moved = run.link.since(before)
    cycle.moved_bytes, cycle.busy_s = moved.moved_bytes, moved.busy_s


def _end(run: Run, cycle: CycleStats, started: float) -> None:
    """Close the cycle: what was neither draft nor verification is bookkeeping."""
    ended = time.perf_counter()
    cycle.other_s = ended - started - cycle.draft_s - cycle.verify_s
    run.stats.cycles.append(cycle)
    run.timeline.add("cycle", f"gamma {cycle.gamma}, {cycle.rows} rows", started, ended, tokens=cycle.tokens)
