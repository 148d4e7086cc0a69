"""Where constructed models, expert stores and exported prompts are kept between runs."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """Folder for constructed models and expert stores: ``SPECMOE_CACHE`` or ``~/.cache/specmoe-bench``."""
    named = os.environ.get("SPECMOE_CACHE")
    return Path(named) if named else Path.home() / ".cache" / "specmoe-bench"
