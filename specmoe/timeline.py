"""A timeline of compute, waits and transfers, saved in a format that Chrome and Perfetto open."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from specmoe.files import write_text

Track = Literal["cycle", "compute", "wait", "link"]
TRACKS: tuple[Track, ...] = ("cycle", "compute", "wait", "link")


@dataclass(frozen=True)
class Span:
    """One event; times are ``time.perf_counter`` seconds."""

    track: Track
    name: str
    start_s: float
    end_s: float
    details: dict[str, Any] = field(default_factory=dict)


class Timeline:
    """Collects spans from any thread; a disabled one (the engine's default) costs one check per span."""

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled
        self.spans: list[Span] = []

    def add(self, track: Track, name: str, start_s: float, end_s: float, **details: Any) -> None:
        """Record a finished span."""
        if self.enabled:
            self.spans.append(Span(track, name, start_s, end_s, details))

    @contextmanager
    def span(self, track: Track, name: str, **details: Any) -> Iterator[None]:
        """Record the enclosed block."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(track, name, start, time.perf_counter(), **details)

    def overlap_s(self, first: Track, second: Track) -> float:
        """Seconds in which both tracks were busy; spans of one track must not overlap."""
        a = sorted((s.start_s, s.end_s) for s in self.spans if s.track == first)
        b = sorted((s.start_s, s.end_s) for s in self.spans if s.track == second)
        total, i, j = 0.0, 0, 0
        while i < len(a) and j < len(b):
            total += max(0.0, min(a[i][1], b[j][1]) - max(a[i][0], b[j][0]))
            if a[i][1] < b[j][1]:
                i += 1
            else:
                j += 1
        return total

    def chrome(self) -> dict[str, Any]:
        """Chrome trace event format, microseconds from the first span."""
        origin = min((s.start_s for s in self.spans), default=0.0)
        names = [
            {"ph": "M", "pid": 1, "tid": i, "name": "thread_name", "args": {"name": track}}
            for i, track in enumerate(TRACKS)
        ]
        events = [
            {
                "ph": "X",
                "pid": 1,
                "tid": TRACKS.index(s.track),
                "name": s.name,
                "ts": (s.start_s - origin) * 1e6,
                "dur": (s.end_s - s.start_s) * 1e6,
                "args": s.details,
            }
            for s in self.spans
        ]
        return {"traceEvents": [*names, *events], "displayTimeUnit": "ms"}

    def save(self, path: Path) -> None:
        """Write the Chrome trace to a JSON file."""
        write_text(path, json.dumps(self.chrome()))
