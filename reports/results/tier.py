"""Where a cell's experts rest, as its ``slow_tier`` says, and whether the kernel read them from a disk."""

from __future__ import annotations

LEAST_READ = 0.5
"""Share of the link's bytes that the kernel must have read for the slow tier to be a disk."""
LEAST_PACE = 0.9
"""Share of a stated rate that a paced link must have reached."""


def is_paced(slow_tier: str) -> bool:
    """Whether experts come from host memory at a stated rate."""
    return slow_tier.startswith("paced")


def in_memory(slow_tier: str) -> bool:
    """Whether experts come from host memory."""
    return slow_tier != "disk"


def tier_text(slow_tier: str) -> str:
    """``disk``, ``host memory``, or ``host memory paced to 25GB/s+10us (emulated)``."""
    if is_paced(slow_tier):
        return f"host memory paced to {slow_tier.partition(':')[2]} (emulated)"
    return "host memory" if in_memory(slow_tier) else slow_tier


def not_from_disk(link_bytes: float | None, kernel_read_bytes: float | None, slow_tier: str) -> bool:
    """Whether experts that should come from disk came from memory; False where either count is missing."""
    if not link_bytes or kernel_read_bytes is None or in_memory(slow_tier):
        return False
    return bool(kernel_read_bytes < LEAST_READ * link_bytes)
