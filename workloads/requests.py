"""What is asked of a system: how long prompts and outputs are, drawn per row, and the batch that comes of it.

A length is a plain number, or a distribution: ``{distribution: uniform, low: 8, high: 64}`` or
``{distribution: lognormal, median: 32, sigma: 0.6, max: 128}``.  Each row's draw depends on the seed and on the
row's place in the prompt set alone, so a batch of 8 begins with the rows of a batch of 4.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, RootModel, Tag, model_validator

from workloads.rendering import Rendered, render, words

if TYPE_CHECKING:
    import torch

    from workloads.prompt import Prompt

_JOIN = "\n\n"
_SMALLEST_SHARE = 1e-12  # the normal quantile of 0 is not finite


class Fixed(RootModel[Annotated[int, Field(ge=1, strict=True)]]):
    """The same length for every row; a plain number where it is written."""

    model_config = ConfigDict(frozen=True)

    @property
    def lowest(self) -> int:
        return self.root

    @property
    def highest(self) -> int:
        return self.root

    def at(self, share: float) -> int:
        """The length that ``share`` of all rows do not exceed."""
        return self.root

    def __str__(self) -> str:
        return str(self.root)


class _Distribution(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Uniform(_Distribution):
    """Every length from ``low`` to ``high``, both included, alike."""

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
        """The length that ``share`` of all rows do not exceed."""
        return min(self.low + int(share * (self.high - self.low + 1)), self.high)

    def __str__(self) -> str:
        return f"{self.low} to {self.high}"


class LogNormal(_Distribution):
    """``median * exp(sigma * z)`` with z standard normal, rounded; what lies beyond ``min`` or ``max`` is set to it."""

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
        """The length that ``share`` of all rows do not exceed."""
        drawn = self.median * math.exp(self.sigma * NormalDist().inv_cdf(max(share, _SMALLEST_SHARE)))
        return round(min(max(drawn, self.min), self.max))

    def __str__(self) -> str:
        return f"lognormal, median {self.median:g}, sigma {self.sigma:g}, at most {self.max}"


def _kind(value: Any) -> str | None:
    """Which length a value means; None for none of them."""
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
    """Lengths of the rows of a request, in tokens.  ``prompt_tokens`` None: prompts as long as they are."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt_tokens: Length | None = None
    output_tokens: Length
    seed: int = 0

    def prompt_lengths(self, rows: int, offset: int = 0) -> list[int] | None:
        """Of ``rows`` prompts from place ``offset`` of the set on; None: as long as they are."""
        return None if self.prompt_tokens is None else self._draw("prompt", self.prompt_tokens, rows, offset)

    def output_lengths(self, rows: int, offset: int = 0) -> list[int]:
        """Of the outputs of ``rows`` prompts from place ``offset`` on."""
        return self._draw("output", self.output_tokens, rows, offset)

    def _draw(self, what: str, length: Length, rows: int, offset: int) -> list[int]:
        return [
            length.at(random.Random(f"{self.seed}-{what}-{place}").random()) for place in range(offset, offset + rows)
        ]


@dataclass(frozen=True)
class Batch:
    """``input_ids`` and ``attention_mask`` are long [B, S], padded on the left; ``output_tokens`` has B numbers."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    output_tokens: tuple[int, ...]


def make(
    prompts: Sequence[Prompt],
    tokenizer: Any,
    shape: RequestShape,
    rows: int,
    offset: int = 0,
    context_tokens: int | None = None,
) -> Batch:
    """The batch of ``rows`` prompts from place ``offset`` of a set on, which starts over at its end.

    With ``prompt_tokens`` every row has exactly its drawn length: a longer prompt is cut before the end of its last
    message (or text); a shorter one goes on with the text of the prompts that follow it, after a blank line.

    Raises:
        ValueError: a row that needs more than ``context_tokens``.
    """
    wanted = shape.prompt_lengths(rows, offset)
    new = shape.output_lengths(rows, offset)
    if wanted is None:
        ids = [_whole(prompts[(offset + row) % len(prompts)], tokenizer) for row in range(rows)]
    else:
        ids = [_exactly(length, prompts, offset + row, tokenizer) for row, length in enumerate(wanted)]
    longest = max(len(row) + more for row, more in zip(ids, new, strict=True))
    if context_tokens is not None and longest > context_tokens:
        raise ValueError(
            f"a row of prompt and output takes {longest} tokens, the model has {context_tokens} positions: "
            "set prompt_tokens, lower output_tokens, or choose other prompts"
        )
    return _padded(ids, tokenizer, tuple(new))


def _whole(prompt: Prompt, tokenizer: Any) -> list[int]:
    rendered = render(prompt, tokenizer)
    return _ids(rendered.body + rendered.end, tokenizer, rendered.special_tokens)


def _exactly(length: int, prompts: Sequence[Prompt], place: int, tokenizer: Any) -> list[int]:
    """``length`` tokens that begin as the prompt at ``place`` does and end as it does."""
    first: Rendered = render(prompts[place % len(prompts)], tokenizer)
    body = _ids(first.body, tokenizer, first.special_tokens)
    end = _ids(first.end, tokenizer, special_tokens=False)
    while len(body) + len(end) < length:
        place += 1
        body += _ids(_JOIN + words(prompts[place % len(prompts)]), tokenizer, special_tokens=False)
    return (body[: max(0, length - len(end))] + end)[-length:]


def _ids(text: str, tokenizer: Any, special_tokens: bool) -> list[int]:
    return list(tokenizer(text, add_special_tokens=special_tokens)["input_ids"]) if text else []


def _padded(rows: list[list[int]], tokenizer: Any, new: tuple[int, ...]) -> Batch:
    import torch

    width = max(map(len, rows))
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
    lengths = torch.tensor([len(row) for row in rows])
    return Batch(ids, (torch.arange(width) >= width - lengths[:, None]).long(), new)
