"""The folder that keeps constructed models, expert stores and exported prompts between runs."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """``SPECMOE_CACHE``, or ``~/.cache/specmoe-bench`` if it is not set."""
    named = os.environ.get("SPECMOE_CACHE")
    return Path(named) if named else Path.home() / ".cache" / "specmoe-bench"
