"""The measurements of one ``generate`` call."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from specmoe.offload.counters import LinkStats, ResidencyStats


@dataclass
class PhaseStats:
    """Prefill or decode: wall time, link traffic, and expert requests of target passes."""

    seconds: float = 0.0
    link: LinkStats = field(default_factory=LinkStats)
    experts: ResidencyStats = field(default_factory=ResidencyStats)


@dataclass
class CycleStats:
    """One cycle of draft, verify and accept: its settings, costs and tokens.

    ``gamma`` is the longest draft of the cycle, ``positions`` the tokens verified over all rows.  Times are
    seconds: ``draft_s`` and ``verify_s`` whole phases, ``wait_s`` the part of ``verify_s`` in which compute waited
    for the link, ``refresh_s`` the part of ``verify_s`` spent on choosing the draft set, ``other_s`` the rest of
    the cycle (acceptance, bookkeeping, controller).  ``busy_s`` is link time, concurrent with the others.
    ``early_bytes`` is the part of ``moved_bytes`` that was moved while drafting.
    """

    gamma: int = 0
    draft_experts: int = 0
    refresh_interval: int = 0
    rows: int = 0
    positions: int = 0
    drafted: int = 0
    accepted: int = 0
    tokens: int = 0
    moved_bytes: int = 0
    early_bytes: int = 0
    requests: int = 0
    hits: int = 0
    draft_s: float = 0.0
    verify_s: float = 0.0
    wait_s: float = 0.0
    busy_s: float = 0.0
    refresh_s: float = 0.0
    other_s: float = 0.0
    reason: str = ""

    @property
    def total_s(self) -> float:
        return self.draft_s + self.verify_s + self.other_s


@dataclass(frozen=True)
class DraftSetting:
    """How the expert budget is used: ``pool`` of experts that may draft (``none`` without drafts or with looked-up ones
    alone), low-bit copies (``bits``, ``copies_bytes``), full slots, and the reason as text."""

    pool: str
    bits: int | None
    copies_bytes: int
    slots: int
    reason: str


@dataclass
class GenerationStats:
    """Counters of one call.

    ``new_tokens`` counts every returned token of every row; the first of each row comes from the prefill.
    ``row_steps`` is the sum over decode passes of the rows active in each, so that
    ``tokens_per_step`` is the paper's T(gamma): tokens a row gains per target pass.
    ``drafted_by_position[i]`` counts tokens drafted i+1 positions ahead, without those past
    the row's end; ``accepted_by_position`` those of them that the target accepted.
    """

    prompt_tokens: int = 0
    new_tokens: int = 0
    decode_tokens: int = 0
    target_passes: int = 0
    row_steps: int = 0
    drafted_by_position: list[int] = field(default_factory=list)
    accepted_by_position: list[int] = field(default_factory=list)
    prefill: PhaseStats = field(default_factory=PhaseStats)
    decode: PhaseStats = field(default_factory=PhaseStats)
    cycles: list[CycleStats] = field(default_factory=list)
    peak_expert_bytes: int = 0
    setting: DraftSetting | None = None

    @classmethod
    def start(cls, prompt_tokens: int, gamma: int) -> GenerationStats:
        """Those of a call that has not generated yet, with drafts of up to ``gamma`` tokens."""
        return cls(prompt_tokens, drafted_by_position=[0] * gamma, accepted_by_position=[0] * gamma)

    @property
    def draft_s(self) -> float:
        return sum(c.draft_s for c in self.cycles)

    @property
    def verify_s(self) -> float:
        return sum(c.verify_s for c in self.cycles)

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
        """Resident over requested distinct experts in decode passes, None when none were requested."""
        experts = self.decode.experts
        return experts.hits / experts.requests if experts.requests else None

    def breakdown_s(self) -> dict[str, float]:
        """Decode time by activity; all parts except ``link_busy`` sum to the cycles' time.

        ``draft`` and ``verify`` are compute: drafting never waits, and waits and refreshes are subtracted from
        verification.
        """
        wait, refresh = sum(c.wait_s for c in self.cycles), sum(c.refresh_s for c in self.cycles)
        return {
            "draft": self.draft_s,
            "verify": self.verify_s - wait - refresh,
            "link_wait": wait,
            "refresh": refresh,
            "python": sum(c.other_s for c in self.cycles),
            "link_busy": sum(c.busy_s for c in self.cycles),
        }

    def cycle_rows(self) -> list[dict[str, Any]]:
        """The cycles as plain data, times rounded to microseconds."""
        return [
            {k: round(v, 6) if isinstance(v, float) else v for k, v in asdict(cycle).items()} for cycle in self.cycles
        ]
