"""Shows the progress of a conversion on stderr: a bar in a terminal, else a line for every few percent."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

SILENT_S = 2.0
"""A conversion that is done within this time shows nothing."""

STEP_PERCENT = 5


class ShownProgress:
    """Called with (experts converted, experts in all) of a store of ``total_bytes``."""

    def __init__(self, out: Path, total_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._name, self._total_bytes, self._clock = out.name, total_bytes, clock
        self._started, self._shown_percent = clock(), -STEP_PERCENT
        self._bar: tqdm[None] | None = None

    def __call__(self, done: int, total: int) -> None:
        if self._clock() - self._started < SILENT_S:
            return
        if sys.stderr.isatty():
            self._draw(done, total)
            return
        percent = 100 * done // total
        if percent >= self._shown_percent + STEP_PERCENT:
            self._shown_percent = percent - percent % STEP_PERCENT
            sizes = f"{self._total_bytes * done / total / 1e9:.1f} of {self._total_bytes / 1e9:.1f} GB"
            print(f"converting experts to {self._name}: {percent} % ({sizes})", file=sys.stderr, flush=True)

    def _draw(self, done: int, total: int) -> None:
        if self._bar is None:
            self._bar = tqdm(
                total=self._total_bytes, desc=f"converting experts to {self._name}", unit="B", unit_scale=True
            )
        self._bar.update(self._total_bytes * done // total - self._bar.n)
        if done == total:
            self._bar.close()
