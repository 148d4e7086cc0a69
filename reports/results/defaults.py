"""Defaults of SpecMoE's options, for records that do not name an option; a test compares them with the adapter's."""

from __future__ import annotations

from typing import Any

OPTION_DEFAULTS: dict[str, Any] = {
    "gamma": 5,
    "draft_experts": 8,
    "placement": "lfu",
    "drafter": "pinned",
    "draft_pool": "pinned",
    "selection": "hot-temporal",
    "count_window": "decayed",
    "counted": "all",
    "refresh_interval": 1,
    "max_replacements": None,
    "ties": "lower-id",
    "initial": "prefill",
    "substitution": "affinity",
    "collision": "add",
    "prefetch": "none",
    "controller": "fixed",
}
