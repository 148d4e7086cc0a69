"""Where experts rest and how fast they leave: a disk, host memory, or host memory paced to a stated rate."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import Literal, Self

Kind = Literal["disk", "host", "paced"]

_PACED = re.compile(r"paced:\s*([0-9.]+)\s*([kMG])B/s(?:\s*\+\s*([0-9.]+)\s*(us|ms))?")
_BYTES = {"k": 1e3, "M": 1e6, "G": 1e9}
_PER_SECOND = {"us": 1e6, "ms": 1e3}


@dataclass(frozen=True)
class SlowTier:
    """``rate_bytes_s`` and ``latency_s`` of each transfer are those of a paced tier; None and 0 otherwise."""

    kind: Kind
    rate_bytes_s: float | None = None
    latency_s: float = 0.0

    @classmethod
    def of(cls, text: str) -> Self:
        """``disk``, ``host``, or a paced tier such as ``paced:25GB/s`` or ``paced:25GB/s+10us``.

        Raises:
            ValueError: anything else, or a rate that is not positive.
        """
        if text in ("disk", "host"):
            return cls("disk" if text == "disk" else "host")
        found = _PACED.fullmatch(text.strip())
        try:
            rate = float(found[1]) * _BYTES[found[2]] if found else 0.0
            latency = float(found[3]) / _PER_SECOND[found[4]] if found and found[3] else 0.0
        except ValueError:
            rate = 0.0
        if rate <= 0:
            raise ValueError(
                f"slow tier {text!r} is unknown: use disk, host, or host memory at a stated rate and latency, such as "
                "paced:25GB/s or paced:25GB/s+10us"
            )
        return cls("paced", rate, latency)

    @property
    def in_memory(self) -> bool:
        """Whether all experts are in the memory of this process."""
        return self.kind != "disk"

    def pace(self) -> Pace | None:
        """Holds transfers to the stated rate; None where none is stated."""
        return None if self.rate_bytes_s is None else Pace(self.rate_bytes_s, self.latency_s)

    def __str__(self) -> str:
        """The text that ``of`` reads; equal for equal tiers."""
        if self.rate_bytes_s is None:
            return self.kind
        latency = f"+{self.latency_s * 1e6:g}us" if self.latency_s else ""
        return f"paced:{self.rate_bytes_s / 1e9:g}GB/s{latency}"


def default_tier(device: str) -> str:
    """Host memory behind a GPU, the disk behind a CPU."""
    return "disk" if device == "cpu" else "host"


class Pace:
    """Makes transfers take as long as on a link of ``rate_bytes_s`` with ``latency_s`` each, one after another.

    A sleep ends late; the next transfer ends that much earlier, so the mean rate is the stated one.
    """

    def __init__(self, rate_bytes_s: float, latency_s: float = 0.0) -> None:
        self._rate_bytes_s, self._latency_s = rate_bytes_s, latency_s
        self._late_s = 0.0

    def hold(self, nbytes: int, started: float) -> None:
        """Return once a transfer of ``nbytes`` that began at ``started`` (``time.perf_counter``) would have ended."""
        due = started + self._latency_s + nbytes / self._rate_bytes_s - self._late_s
        left = due - time.perf_counter()
        if left > 0:
            time.sleep(left)
        # What the copy itself took beyond the rate is not made up for: then the link is slower than stated.
        self._late_s = min(max(time.perf_counter() - due, 0.0), _LATEST_S) if left > 0 else 0.0


_LATEST_S = 1e-3
