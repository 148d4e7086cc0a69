"""Synthetic traces of stated skew, locality, correlation across rows and acceptance, from a seed.

A token's experts are drawn without replacement from the layer's popularity, a Zipf law over a shuffled order of
experts.  With probability ``repeat`` a token takes the experts of the previous token instead, and with probability
``correlation`` a draw common to all rows.  Neither changes how often an expert is used overall, so the skew stays as
stated.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal, get_args

import torch

from harness.projection.traces.trace import Geometry, Pass, Phase, Trace, TraceError
from workloads.skew import gini, top_share

_SAMPLED = 4096  # draws used to find the exponent of a skew
_STEEPEST = 8.0


Measure = Literal["zipf", "top-10%", "gini"]


@dataclass(frozen=True)
class Skew:
    """Skew of expert use: exponent of a Zipf law, share of the top 10 % of experts, or Gini coefficient."""

    measure: Measure
    value: float

    @classmethod
    def parse(cls, text: str) -> Skew:
        """From ``MEASURE=VALUE``, such as ``gini=0.7``.

        Raises:
            TraceError: another measure, or a value that is not a number.
        """
        name, _, value = text.partition("=")
        measure = next((known for known in get_args(Measure) if known == name), None)
        try:
            number = float(value)
        except ValueError:
            measure = None
        if measure is None:
            raise TraceError(f"skew {text!r}: write zipf=1.2, top-10%=0.6 or gini=0.7")
        return cls(measure, number)


@dataclass(frozen=True)
class Recipe:
    """Statistics of a synthetic trace.

    Args:
        rows: of the batch.
        new_tokens: tokens per row; a row that has them leaves the batch, so its last cycle may be shorter.
        gamma: drafted tokens per cycle; 0 for plain decoding.
        acceptance: probability that a drafted token is accepted if those before it are.
        repeat: probability that a token takes the experts of the previous token.
        correlation: probability that a token takes the draw common to all rows.
        prompt_tokens: per row.
        cycles: if given, end after this many cycles instead, with every row in all of them (as in long outputs).
    """

    rows: int
    new_tokens: int
    gamma: int
    skew: Skew
    acceptance: float = 0.8
    repeat: float = 0.0
    correlation: float = 0.0
    prompt_tokens: int = 16
    seed: int = 0
    cycles: int | None = None

    def __post_init__(self) -> None:
        for name in ("acceptance", "repeat", "correlation"):
            if not 0 <= getattr(self, name) <= 1:
                raise TraceError(f"{name} {getattr(self, name)} is not a probability: give 0 to 1")
        for name, least in (("rows", 1), ("new_tokens", 2), ("prompt_tokens", 1), ("gamma", 0)):
            if getattr(self, name) < least:
                raise TraceError(f"{name} {getattr(self, name)} is too small: give at least {least}")


def make(geometry: Geometry, recipe: Recipe) -> Trace:
    """A trace of one ``generate`` call over a model of this geometry.

    Raises:
        TraceError: no Zipf law has this skew.
    """
    return _Maker(geometry, recipe).run()


@cache
def popularity(experts: int, top_k: int, skew: Skew) -> torch.Tensor:
    """Log-popularity [E], most popular first, such that draws of ``top_k`` experts have the skew.

    Raises:
        TraceError: no Zipf law has this skew.
    """
    noise = _gumbel((_SAMPLED, experts), torch.Generator().manual_seed(0))
    ranks = torch.arange(1, experts + 1).log()
    if skew.measure == "zipf":
        return -skew.value * ranks
    measure = gini if skew.measure == "gini" else top_share

    def reached(exponent: float) -> float:
        drawn = (noise - exponent * ranks).topk(top_k, dim=1).indices
        return measure(torch.bincount(drawn.flatten(), minlength=experts).float())

    low, high = 0.0, _STEEPEST
    if not reached(low) - 0.02 <= skew.value <= reached(high):
        raise TraceError(
            f"no Zipf law over {experts} experts with top-{top_k} has {skew.measure} {skew.value}: "
            f"give {reached(low):.2f} to {reached(high):.2f}"
        )
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if reached(middle) < skew.value else (low, middle)
    return -(low + high) / 2 * ranks


def _gumbel(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    return -(-torch.rand(shape, generator=generator).clamp_min(1e-20).log()).log()


class _Maker:
    """Draws the picks of every row and layer, cycle by cycle."""

    def __init__(self, geometry: Geometry, recipe: Recipe) -> None:
        self._geometry, self._recipe = geometry, recipe
        self._generator = torch.Generator().manual_seed(recipe.seed)
        laws = {size: popularity(size, geometry.top_k, recipe.skew) for size in set(geometry.experts)}
        self._logits = [laws[n][torch.randperm(n, generator=self._generator)] for n in geometry.experts]
        self._last = [torch.full((recipe.rows, geometry.top_k), -1) for _ in geometry.experts]  # picks, [B, K]

    def run(self) -> Trace:
        recipe = self._recipe
        trace = Trace(self._geometry, meta={"synthetic": _plain(recipe)})
        rows = torch.arange(recipe.rows)
        lengths = torch.full((recipe.rows,), recipe.prompt_tokens)
        picks = self._draw(rows, recipe.prompt_tokens)
        self._keep(rows, picks, lengths - 1)
        trace.passes.append(_pass(0, "prefill", 0, rows, rows * 0, lengths, picks, lengths - 1))
        remaining = torch.full((recipe.rows,), recipe.new_tokens - 1)
        if recipe.cycles is not None:
            remaining = torch.full((recipe.rows,), recipe.cycles * (recipe.gamma + 1) + 1)  # more than can be used
        cycle = 0
        while len(rows) and cycle != recipe.cycles:
            cycle += 1
            drafted = (remaining - 1).clamp_max(recipe.gamma)
            picks = self._draw(rows, int(drafted.max()) + 1)
            accepted = self._accept(drafted)
            self._keep(rows, picks, accepted)
            trace.passes += _cycle(cycle, rows, lengths, drafted, picks, accepted)
            remaining, lengths = remaining - accepted - 1, lengths + accepted + 1
            going = remaining > 0
            rows, remaining, lengths = rows[going], remaining[going], lengths[going]
        return trace

    def _draw(self, rows: torch.Tensor, places: int) -> list[torch.Tensor]:
        """Picks of the next ``places`` tokens of ``rows``: one long [B, Q, K] per layer."""
        return [self._draw_layer(layer, rows, places) for layer in range(len(self._logits))]

    def _draw_layer(self, layer: int, rows: torch.Tensor, places: int) -> torch.Tensor:
        recipe, logits, k = self._recipe, self._logits[layer], self._geometry.top_k
        noise = _gumbel((len(rows), places, len(logits)), self._generator)
        picks = (noise + logits).topk(k, dim=-1).indices
        if recipe.correlation:
            common = (_gumbel((1, places, len(logits)), self._generator) + logits).topk(k, dim=-1).indices
            picks = torch.where(self._chance((len(rows), places, 1), recipe.correlation), common, picks)
        if recipe.repeat:
            again = self._chance((len(rows), places, 1), recipe.repeat)
            before = self._last[layer][rows]
            for place in range(places):
                picks[:, place] = torch.where(again[:, place] & (before >= 0), before, picks[:, place])
                before = picks[:, place]
        return picks

    def _chance(self, shape: tuple[int, ...], probability: float) -> torch.Tensor:
        return torch.rand(shape, generator=self._generator) < probability

    def _accept(self, drafted: torch.Tensor) -> torch.Tensor:
        """Accepted tokens per row, long [B]: each with the same probability, up to the first rejection."""
        most = int(drafted.max())
        agreed = self._chance((len(drafted), most), self._recipe.acceptance)
        return (agreed & (torch.arange(most) < drafted[:, None])).long().cumprod(1).sum(1)

    def _keep(self, rows: torch.Tensor, picks: list[torch.Tensor], accepted: torch.Tensor) -> None:
        """Remember the picks of the last kept token, which the next token may repeat."""
        for layer, drawn in enumerate(picks):
            self._last[layer][rows] = drawn[torch.arange(len(rows)), accepted]


def _cycle(
    cycle: int,
    rows: torch.Tensor,
    start: torch.Tensor,
    drafted: torch.Tensor,
    picks: list[torch.Tensor],
    accepted: torch.Tensor,
) -> list[Pass]:
    """The draft steps, which route tokens as the verification does, and the verification."""
    steps = [
        _pass(
            cycle,
            "draft",
            step,
            rows,
            start + step,
            (drafted > step).long(),
            [p[:, step : step + 1] for p in picks],
            accepted,
        )
        for step in range(int(drafted.max()))
    ]
    return [*steps, _pass(cycle, "verify", 0, rows, start, drafted + 1, picks, accepted)]


def _pass(
    cycle: int,
    phase: Phase,
    step: int,
    rows: torch.Tensor,
    start: torch.Tensor,
    lengths: torch.Tensor,
    picks: list[torch.Tensor],
    accepted: torch.Tensor,
) -> Pass:
    """A pass in which the first ``lengths`` (long [B]) tokens of each row are valid."""
    valid = torch.arange(picks[0].shape[1]) < lengths[:, None]
    return Pass(0, cycle, phase, step, rows, start, valid, [p * valid[:, :, None] for p in picks], accepted)


def _plain(recipe: Recipe) -> dict[str, object]:
    return vars(recipe) | {"skew": vars(recipe.skew)}
