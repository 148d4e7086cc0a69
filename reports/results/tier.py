"""Whether expert bytes that crossed the link from "disk" were read from a disk, as the kernel counts reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LEAST_READ = 0.5
"""Share of the link's bytes that the kernel must have read for the slow tier to be a disk."""


def from_host_memory(options: Mapping[str, Any]) -> bool:
    """Whether a cell's options say that its experts come from host memory and not from disk."""
    default = "host" if str(options.get("device", "cpu")).startswith("cuda") else "disk"
    return bool((options.get("slow_tier") or default) != "disk")


def not_from_disk(link_bytes: float | None, kernel_read_bytes: float | None, options: Mapping[str, Any]) -> bool:
    """Whether experts that should come from disk came from memory; False where either count is missing."""
    if not link_bytes or kernel_read_bytes is None or from_host_memory(options):
        return False
    return bool(kernel_read_bytes < LEAST_READ * link_bytes)
