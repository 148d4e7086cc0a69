"""When the requests of a queue arrive: all at once, or as a Poisson process."""

from __future__ import annotations

import random
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Poisson(BaseModel):
    """Independent arrivals, ``rate_per_s`` of them a second on average."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    process: Literal["poisson"] = "poisson"
    rate_per_s: float = Field(gt=0, allow_inf_nan=False)

    def __str__(self) -> str:
        return f"Poisson at {self.rate_per_s:g} per second"


def times_s(arrivals: Poisson | None, count: int, seed: int) -> tuple[float, ...]:
    """Seconds after the start at which ``count`` requests arrive, in order; all 0 without a process.

    The first one arrives at 0, and the n first are those of a longer queue.
    """
    if arrivals is None:
        return (0.0,) * count
    draw, now, times = random.Random(f"{seed}-arrivals"), 0.0, []
    for _ in range(count):
        times.append(now)
        now += draw.expovariate(arrivals.rate_per_s)
    return tuple(times)
