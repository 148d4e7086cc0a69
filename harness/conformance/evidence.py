"""What the runs of one system left for the checks to judge."""

from __future__ import annotations

from dataclasses import dataclass, field

from baselines.contract import CapabilityCard
from harness.run.job import Answer
from reports.results.record import Record


@dataclass
class Evidence:
    """Records of the runs and answers to bad input, by name; ``leftovers`` are files and processes after a run."""

    card: CapabilityCard
    records: dict[str, Record] = field(default_factory=dict)
    refusals: dict[str, Answer] = field(default_factory=dict)
    unknown_option: str | None = None
    leftovers: list[str] = field(default_factory=list)
    large_expert_bytes: int = 0
    kernel_counts_reads: bool = False
