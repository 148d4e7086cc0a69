"""From logits to tokens: greedy, or sampling that keeps the target's distribution whatever is drafted.

The acceptance rule is that of Leviathan et al. (arXiv 2211.17192) and Chen et al. (arXiv 2302.01318), applied
to the processed distributions p (target) and q (draft): a drafted token x is kept with probability
min(1, p(x) / q(x)); the first that is not kept is replaced by a draw from max(p - q, 0), renormalised; if all
are kept, one more is drawn from p.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)


@dataclass
class Proposal:
    """What a drafter proposes for every row.

    ``tokens`` is long [B, g]; row b proposes its first ``lengths[b]`` (long [B]).  ``probs`` [B, g, V] is the
    distribution each token was sampled from, None when it was not sampled (greedy or looked up).
    """

    tokens: torch.Tensor
    lengths: torch.Tensor
    probs: torch.Tensor | None = None

    @property
    def valid(self) -> torch.Tensor:
        """Which tokens are proposed: bool [B, g]."""
        return torch.arange(self.tokens.shape[1], device=self.tokens.device) < self.lengths[:, None]


class Sampler(Protocol):
    """How tokens are chosen from logits, by draft and target alike."""

    def draw(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Tokens long [B] from logits [B, V], and the distribution [B, V] they were sampled from, or None."""
        ...

    def accept(self, proposal: Proposal, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Accepted counts long [B] and the target's own next token long [B], from target logits [B, g + 1, V]."""
        ...


class Greedy:
    """The most likely token; a drafted token is accepted when the target's token is the same."""

    def draw(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        return logits.argmax(dim=-1), None

    def accept(self, proposal: Proposal, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        targets = logits.argmax(dim=-1)  # [B, g + 1]
        accepted = longest_prefix((proposal.tokens == targets[:, :-1]) & proposal.valid)
        return accepted, targets.gather(1, accepted[:, None]).squeeze(1)


class Sampling:
    """Temperature, top-k and top-p as transformers processes them, then a draw.

    Args:
        temperature: above 0; 1 leaves logits as they are.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the smallest set with this probability; 1 keeps all.
        seed: of the draws.
        device: where the draws are made.
        min_p: keep tokens at least this fraction as likely as the most likely one; None keeps all.

    Raises:
        ValueError: a value out of range.
    """

    def __init__(
        self,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        device: torch.device | str = "cpu",
        min_p: float | None = None,
    ) -> None:
        if top_k < 0:
            raise ValueError(f"top_k is {top_k}: use 0 (all tokens) or more")
        self._warpers = LogitsProcessorList([TemperatureLogitsWarper(float(temperature))])
        if top_k:
            self._warpers.append(TopKLogitsWarper(top_k))
        if top_p != 1.0:
            self._warpers.append(TopPLogitsWarper(top_p))
        if min_p is not None:
            self._warpers.append(MinPLogitsWarper(min_p))
        self._generator = torch.Generator(device).manual_seed(seed)

    @classmethod
    def of(cls, settings: dict[str, Any], seed: int, device: torch.device) -> Sampling:
        """The sampler of merged generation settings (see ``specmoe.generation``)."""
        return cls(settings["temperature"], settings["top_k"], settings["top_p"], seed, device, settings["min_p"])

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """The processed distribution, float32 [..., V], of logits [..., V]."""
        flat = logits.reshape(-1, logits.shape[-1]).float()
        no_ids = torch.empty(len(flat), 0, dtype=torch.long, device=flat.device)
        warped: torch.Tensor = self._warpers(no_ids, flat)
        return warped.softmax(dim=-1).view(logits.shape)

    def draw(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        probs = self.probabilities(logits)
        return self._pick(probs), probs

    def accept(self, proposal: Proposal, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        target = self.probabilities(logits)  # [B, g + 1, V]
        drawn_from = proposal.probs
        if drawn_from is None:  # looked up, so drawn from a distribution with all its mass on the token
            drawn_from = torch.zeros_like(target[:, :-1]).scatter_(2, proposal.tokens[:, :, None], 1.0)
        p = target[:, :-1].gather(2, proposal.tokens[:, :, None]).squeeze(2)  # [B, g]
        q = drawn_from.gather(2, proposal.tokens[:, :, None]).squeeze(2)
        chance = torch.rand(p.shape, generator=self._generator, device=p.device)
        accepted = longest_prefix((chance * q < p) & proposal.valid)  # [B]
        rows = torch.arange(len(accepted), device=accepted.device)
        chances = target[rows, accepted]  # [B, V]
        rejected = accepted < proposal.lengths
        if bool(rejected.any()):
            residual = (chances[rejected] - drawn_from[rows[rejected], accepted[rejected]]).clamp_min(0)
            total = residual.sum(dim=-1, keepdim=True)
            # if p == q in every bit nothing is left: the token was rejected by rounding only, and p is right
            chances[rejected] = torch.where(total > 0, residual / total.clamp_min(1e-30), chances[rejected])
        return accepted, self._pick(chances)

    def _pick(self, probs: torch.Tensor) -> torch.Tensor:
        return torch.multinomial(probs, 1, generator=self._generator).squeeze(1)


def longest_prefix(kept: torch.Tensor) -> torch.Tensor:
    """Number of leading True values per row: bool [B, g] to long [B]."""
    return kept.long().cumprod(dim=1).sum(dim=1)
