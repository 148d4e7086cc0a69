"""What one ``generate`` call measured about itself."""

from __future__ import annotations

from dataclasses import dataclass, field

from specmoe.link import LinkStats
from specmoe.residency import ResidencyStats


@dataclass
class PhaseStats:
    """Prefill or decode: wall time, link traffic, and expert requests of target passes."""

    seconds: float = 0.0
    link: LinkStats = field(default_factory=LinkStats)
    experts: ResidencyStats = field(default_factory=ResidencyStats)


@dataclass
class GenerationStats:
    """Counters of one call.

    ``new_tokens`` counts every returned token of every row; the first of each row comes from the prefill.
    ``row_steps`` is the sum over decode passes of the rows still active in it, so that
    ``tokens_per_step`` is the paper's T(gamma): tokens a row gains per target pass.
    ``drafted_by_position[i]`` counts tokens drafted i+1 places ahead whose acceptance still mattered
    (not past the row's end); ``accepted_by_position`` those of them the target kept.
    """

    prompt_tokens: int = 0
    new_tokens: int = 0
    decode_tokens: int = 0
    target_passes: int = 0
    row_steps: int = 0
    drafted_by_position: list[int] = field(default_factory=list)
    accepted_by_position: list[int] = field(default_factory=list)
    draft_s: float = 0.0
    verify_s: float = 0.0
    prefill: PhaseStats = field(default_factory=PhaseStats)
    decode: PhaseStats = field(default_factory=PhaseStats)
    peak_expert_bytes: int = 0

    @property
    def tokens_per_step(self) -> float:
        """T(gamma): decode tokens per row and target pass; 1 without speculation, NaN without decoding."""
        return self.decode_tokens / self.row_steps if self.row_steps else float("nan")

    @property
    def acceptance_rate(self) -> float | None:
        """Accepted over drafted tokens, None when nothing was drafted."""
        drafted = sum(self.drafted_by_position)
        return sum(self.accepted_by_position) / drafted if drafted else None

    @property
    def hit_rate(self) -> float | None:
        """Resident over requested distinct experts of decode passes, None when none were requested."""
        experts = self.decode.experts
        return experts.hits / experts.requests if experts.requests else None
