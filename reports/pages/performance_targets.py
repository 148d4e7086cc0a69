"""The performance targets, and what records say of each: a ratio within rounds, its interval, reached or not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import pandas as pd

from reports import text
from reports.results.aggregate import within_rounds
from reports.results.rivals import ON_OUR_ENGINE, Place, automatic_places, fastest
from reports.results.roles import CACHE, REFERENCE
from reports.results.settings import with_settings
from reports.results.stats import Ratio, bootstrap

MODEL = "embedded-x32"
OUTSIDE = "llama-cpp"
Measured = dict[int, Ratio]
"""A ratio for each batch size that was measured."""


@dataclass(frozen=True)
class Target:
    """A row: what is compared, and the value to reach by batch size; ``at_most`` for times, which are to be small."""

    name: str
    bars: Mapping[int, float]
    measure: Callable[[list[Place]], Measured]
    at_most: bool = False

    def reached(self, batch: int, ratio: Ratio) -> str:
        """The verdict on the median; ``unsure`` if the interval holds the target."""
        bar, median = self.bars[batch], ratio.median or 0.0
        word = "reached" if (median <= bar if self.at_most else median >= bar) else "missed"
        unsure = ratio.low is not None and ratio.high is not None and ratio.low < bar < ratio.high
        return f"{word}, unsure" if unsure else word


def places_of(frame: pd.DataFrame) -> list[Place]:
    """The cells of the automatic setting in loaded records, those with more rounds later."""
    found = automatic_places(with_settings(frame)) if len(frame) else iter(())
    return sorted(found, key=lambda place: len(place.ours))


def table(places: list[Place]) -> str:
    """Markdown: a row for each target, a column for each batch size."""
    batches = sorted({batch for target in TARGETS for batch in target.bars})
    rows = []
    for target in TARGETS:
        measured = target.measure(places)
        rows.append([target.name, *(_cell(target, batch, measured.get(batch)) for batch in batches)])
    return text.markdown(["against", *(f"batch {batch}" for batch in batches)], rows, range(1, len(batches) + 1))


def _cell(target: Target, batch: int, ratio: Ratio | None) -> str:
    if batch not in target.bars:
        return ""
    bar = f"{target.bars[batch]:g}"
    if ratio is None or ratio.median is None:
        return f"{text.NONE} ({bar})"
    interval = "" if ratio.low is None or ratio.high is None else f" [{ratio.low:.2f}, {ratio.high:.2f}]"
    return f"{ratio.median:.2f}{interval} {target.reached(batch, ratio)} ({bar})"


def _at(places: Iterable[Place], model: str, stored: str | None, budget: str | None) -> list[Place]:
    """Places of a model, a stored dtype and a configured budget; None stands for any."""
    wanted = {"model": model, "stored": stored, "budget": budget}
    asked = {name: value for name, value in wanted.items() if value is not None}
    return [place for place in places if all(place.ours.iloc[0][name] == value for name, value in asked.items())]


def _over(
    places: list[Place], *systems: str, stored: str | None = None, budget: str | None = None, model: str = MODEL
) -> Measured:
    """Speed over the fastest of ``systems`` in the same memory."""
    found = {place.batch_size: place.over(place.of(*systems)) for place in _at(places, model, stored, budget)}
    return {batch: ratio for batch, ratio in found.items() if ratio.median is not None}


def _over_outside(places: list[Place], stored: str) -> Measured:
    """Speed over llama.cpp under one process limit, each with the memory that it can use."""
    found = {}
    for place in _at(places, MODEL, stored, "fill"):
        theirs = place.others[place.others["system"] == OUTSIDE]
        if len(theirs):
            found[place.batch_size] = place.over(theirs)
    return found


def _step_over_outside(places: list[Place]) -> Measured:
    """Time of one step with every expert resident over llama.cpp's."""
    found = {}
    for place in _at(places, MODEL, None, "100%"):
        theirs = fastest(place.others[place.others["system"] == OUTSIDE])
        if len(theirs):
            pair = [rows.assign(step_s=rows["tpot_s"] * rows["tokens_per_step"]) for rows in (place.ours, theirs)]
            found[place.batch_size] = within_rounds(pair[0], pair[1], "step_s")
    return found


def _lowest(places: list[Place]) -> Measured:
    """The lowest ratio of any model and budget over the best rival on our engine."""
    found: Measured = {}
    for place in places:
        ratio, batch = place.over(place.of(*ON_OUR_ENGINE)), place.batch_size
        if ratio.median is not None and (batch not in found or ratio.median < (found[batch].median or 0.0)):
            found[batch] = ratio
    return found


def _share(places: list[Place], metric: str) -> Measured:
    found = {p.batch_size: bootstrap(p.ours[metric].tolist()) for p in _at(places, MODEL, "float32", "25%")}
    return {batch: ratio for batch, ratio in found.items() if ratio.median is not None}


_ALL = (1, 8, 32, 128, 256)
_FLOAT32 = dict(zip(_ALL, (1.3, 1.25, 1.7, 2.0, 2.0), strict=True))
_BFLOAT16 = dict(zip(_ALL, (1.15, 1.15, 1.4, 1.6, 1.6), strict=True))
_CHAT = dict.fromkeys((1, 8, 32, 64), 1.0)
_OUTSIDE = {1: 1.0, 8: 6.0, 32: 15.0}
TARGETS = (
    Target(
        "on-demand loading, float32, 25 %",
        dict(zip(_ALL, (3.4, 4.3, 4.3, 4.3, 4.3), strict=True)),
        lambda places: _over(places, REFERENCE, stored="float32", budget="25%"),
    ),
    Target("best cache, float32, 25 %", _FLOAT32, lambda p: _over(p, CACHE, stored="float32", budget="25%")),
    Target("best cache, bfloat16, 25 %", _BFLOAT16, lambda p: _over(p, CACHE, stored="bfloat16", budget="25%")),
    Target("best cache, bfloat16, 40 %", _BFLOAT16, lambda p: _over(p, CACHE, stored="bfloat16", budget="40%")),
    Target("best cache, smollm2-moe", _CHAT, lambda p: _over(p, CACHE, model="smollm2-moe")),
    Target("best cache, smollm2-moe-fine", _CHAT, lambda p: _over(p, CACHE, model="smollm2-moe-fine")),
    Target("best rival, lowest cell", dict.fromkeys((*_ALL, 64), 0.97), _lowest),
    Target("llama.cpp, float32, same limit", _OUTSIDE, lambda p: _over_outside(p, "float32")),
    Target("llama.cpp, bfloat16, same limit", _OUTSIDE, lambda p: _over_outside(p, "bfloat16")),
    Target("step time over llama.cpp, all resident (at most)", {1: 1.5, 8: 1.0}, _step_over_outside, at_most=True),
    Target("link rate in I/O-bound cycles", dict.fromkeys(_ALL, 0.95), lambda p: _share(p, "io_bound_link_of_ceiling")),
    Target("achieved over limit", dict.fromkeys(_ALL, 0.75), lambda p: _share(p, "achieved_over_limit")),
)
