"""How long prompts and outputs are: a number of tokens, or a distribution that each row draws from.

Written as a plain number, as ``{distribution: uniform, low: 8, high: 64}`` or as
``{distribution: lognormal, median: 32, sigma: 0.6, max: 128}``.  A row's draw depends only on the seed and on the row's
place in the prompt set, so a batch of 8 begins with the rows of a batch of 4.
"""

from __future__ import annotations

import math
import random
from statistics import NormalDist
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, RootModel, Tag, model_validator

_SMALLEST_SHARE = 1e-12  # the normal quantile of 0 is not finite


class Fixed(RootModel[Annotated[int, Field(ge=1, strict=True)]]):
    """The same length for every row; serialised as a plain number."""

    model_config = ConfigDict(frozen=True)

    @property
    def lowest(self) -> int:
        return self.root

    @property
    def highest(self) -> int:
        return self.root

    def at(self, share: float) -> int:
        """The ``share`` quantile: the length that ``share`` of all rows do not exceed."""
        return self.root

    def __str__(self) -> str:
        return str(self.root)


class _Distribution(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Uniform(_Distribution):
    """Every length from ``low`` to ``high``, both included, equally likely."""

    distribution: Literal["uniform"] = "uniform"
    low: int = Field(ge=1)
    high: int = Field(ge=1)

    @model_validator(mode="after")
    def _ordered(self) -> Uniform:
        if self.high < self.low:
            raise ValueError(f"high {self.high} is below low {self.low}")
        return self

    @property
    def lowest(self) -> int:
        return self.low

    @property
    def highest(self) -> int:
        return self.high

    def at(self, share: float) -> int:
        """The ``share`` quantile: the length that ``share`` of all rows do not exceed."""
        return min(self.low + int(share * (self.high - self.low + 1)), self.high)

    def __str__(self) -> str:
        return f"{self.low} to {self.high}"


class LogNormal(_Distribution):
    """``median * exp(sigma * z)`` with z standard normal, rounded and clamped to ``min`` and ``max``."""

    distribution: Literal["lognormal"] = "lognormal"
    median: float = Field(ge=1, allow_inf_nan=False)
    sigma: float = Field(gt=0, le=4)
    max: int = Field(ge=1)
    min: int = Field(default=2, ge=1)

    @model_validator(mode="after")
    def _ordered(self) -> LogNormal:
        if not self.min <= self.median <= self.max:
            raise ValueError(f"median {self.median:g} is not between min {self.min} and max {self.max}")
        return self

    @property
    def lowest(self) -> int:
        return self.min

    @property
    def highest(self) -> int:
        return self.max

    def at(self, share: float) -> int:
        """The ``share`` quantile: the length that ``share`` of all rows do not exceed."""
        drawn = self.median * math.exp(self.sigma * NormalDist().inv_cdf(max(share, _SMALLEST_SHARE)))
        return round(min(max(drawn, self.min), self.max))

    def __str__(self) -> str:
        return f"lognormal, median {self.median:g}, sigma {self.sigma:g}, at most {self.max}"


def _kind(value: Any) -> str | None:
    """Discriminator of ``Length``; None for a value that is no length."""
    if isinstance(value, int | Fixed):
        return "fixed"
    named = value.get("distribution") if isinstance(value, dict) else getattr(value, "distribution", None)
    return str(named) if named in ("uniform", "lognormal") else None


Length = Annotated[
    Annotated[Fixed, Tag("fixed")] | Annotated[Uniform, Tag("uniform")] | Annotated[LogNormal, Tag("lognormal")],
    Discriminator(
        _kind,
        custom_error_type="length",
        custom_error_message="a length is a number of tokens, {distribution: uniform, low, high} or "
        "{distribution: lognormal, median, sigma, max}",
    ),
]


class RequestShape(BaseModel):
    """Lengths of the rows of a request, in tokens; with ``prompt_tokens`` None, prompts keep their own length."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt_tokens: Length | None = None
    output_tokens: Length
    seed: int = 0

    def prompt_lengths(self, rows: int, offset: int = 0) -> list[int] | None:
        """Lengths of ``rows`` prompts, starting at place ``offset`` of the set; None: prompts keep their own length."""
        return None if self.prompt_tokens is None else self._draw("prompt", self.prompt_tokens, rows, offset)

    def output_lengths(self, rows: int, offset: int = 0) -> list[int]:
        """Lengths of the outputs of ``rows`` prompts, starting at place ``offset`` of the set."""
        return self._draw("output", self.output_tokens, rows, offset)

    def _draw(self, what: str, length: Length, rows: int, offset: int) -> list[int]:
        return [
            length.at(random.Random(f"{self.seed}-{what}-{place}").random()) for place in range(offset, offset + rows)
        ]
