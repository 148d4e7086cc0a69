"""Sources of draft tokens.  Any drafter is lossless, since the target verifies whatever it proposes."""

from __future__ import annotations

from typing import Protocol

import torch

from specmoe.batch import Rows, Run, forward
from specmoe.model.pass_state import Pass
from specmoe.options import SpecOptions
from specmoe.sampling import Proposal


class Drafter(Protocol):
    """Proposes up to ``lengths[b]`` (long [B]) tokens for each active row; leaves the cache's lengths alone."""

    def propose(self, run: Run, rows: Rows, lengths: torch.Tensor) -> Proposal: ...


class PinnedDraft:
    """The target itself with draft experts only (the paper's draft): no expert is loaded, no second cache is needed."""

    def propose(self, run: Run, rows: Rows, lengths: torch.Tensor) -> Proposal:
        steps = int(lengths.max()) if len(lengths) else 0
        tokens, probs = [rows.last], []
        with run.cache.provisional():
            for step in range(steps):
                with run.timeline.span("compute", "draft step"):
                    drafting = lengths > step  # rows that want fewer tokens ask for no expert
                    logits = forward(run, tokens[-1][:, None], Pass("draft", drafting))[:, -1]
                    token, drawn_from = run.sampler.draw(logits)
                    tokens.append(token)
                    probs.append(drawn_from)
                    run.cache.commit(torch.ones_like(rows.last))
        drawn = [p for p in probs if p is not None]
        return Proposal(
            torch.stack(tokens[1:], dim=1) if steps else rows.last.new_empty(len(rows), 0),
            lengths,
            torch.stack(drawn, dim=1) if drawn else None,
        )


class NgramDraft:
    """Prompt lookup: the tokens that followed the latest earlier occurrence of the row's last few tokens.

    Uses the longest suffix of ``most`` down to ``fewest`` tokens that occurred before; without one the row
    proposes nothing.
    """

    def __init__(self, fewest: int = 2, most: int = 4) -> None:
        self._fewest, self._most = fewest, most

    def propose(self, run: Run, rows: Rows, lengths: torch.Tensor) -> Proposal:
        wanted = lengths.tolist()
        found = [self.look_up(rows.tokens[i], n) for i, n in zip(rows.index.tolist(), wanted, strict=True)]
        width = max(map(len, found), default=0)
        tokens = torch.tensor([f + [0] * (width - len(f)) for f in found], dtype=torch.long, device=lengths.device)
        return Proposal(tokens.view(len(rows), width), torch.tensor([len(f) for f in found], device=lengths.device))

    def look_up(self, tokens: list[int], length: int) -> list[int]:
        """Up to ``length`` tokens that followed the longest suffix of ``tokens`` where it last occurred."""
        for size in range(min(self._most, len(tokens) - 1), self._fewest - 1, -1):
            suffix = tokens[-size:]
            for start in range(len(tokens) - size - 1, -1, -1):
                if tokens[start : start + size] == suffix:
                    return tokens[start + size : start + size + length]
        return []


class Combined:
    """N-gram lookup for rows whose text repeats itself, the pinned draft for the others.

    With sampling, a looked-up token is proposed with probability 1, so it gets a one-hot distribution.
    """

    def __init__(self, lookup: NgramDraft, drafted: PinnedDraft) -> None:
        self._lookup, self._drafted = lookup, drafted

    def propose(self, run: Run, rows: Rows, lengths: torch.Tensor) -> Proposal:
        looked_up = self._lookup.propose(run, rows, lengths)
        missing = looked_up.lengths == 0
        drafted = self._drafted.propose(run, rows, lengths * missing)
        width = max(looked_up.tokens.shape[1], drafted.tokens.shape[1])
        tokens = rows.last.new_zeros(len(rows), width)
        tokens[:, : looked_up.tokens.shape[1]] = looked_up.tokens
        tokens[missing, : drafted.tokens.shape[1]] = drafted.tokens[missing]
        probs = None
        if drafted.probs is not None:
            probs = drafted.probs.new_zeros(len(rows), width, drafted.probs.shape[-1])
            probs.scatter_(2, tokens[:, :, None], 1.0)
            probs[missing, : drafted.probs.shape[1]] = drafted.probs[missing]
        return Proposal(tokens, torch.where(missing, drafted.lengths, looked_up.lengths), probs)


def make_drafter(options: SpecOptions) -> Drafter:
    """The drafter that the options name."""
    lookup = NgramDraft(options.ngram_min, options.ngram_max)
    if options.drafter == "ngram":
        return lookup
    return PinnedDraft() if options.drafter == "pinned" else Combined(lookup, PinnedDraft())
