"""Machines made of recorded cycles: one cell per model, budget and batch of the committed records."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from reports.results.lines import read_lines
from specmoe.stats import CycleStats
from tests.specmoe.control.machines import GEOMETRIES, Cell, Request

_SIZES = ("draft_s", "compute_s", "moved_bytes", "early_bytes", "wait_s", "busy_s", "other_s")


class Recorded:
    """Costs drawn from recorded cycles near the one asked for, each with all its noise, scaled to its size.

    Near is by positions, rows, the share of the request that is done, and whether there was a draft.  A component is
    scaled by the power of positions (a draft step: of rows) that it shows over the whole cell.
    """

    NEAREST = 8

    def __init__(self, cycles: list[dict[str, Any]], exponents: dict[str, float] | None = None) -> None:
        self._done = np.array([c["done"] for c in cycles], float)
        self._gamma = np.array([c["gamma"] for c in cycles], float)
        self._positions = np.array([c["positions"] for c in cycles], float)
        self._rows = np.array([c["rows"] for c in cycles], float)
        self._drafted = np.array([max(1, c["positions"] - c["rows"]) for c in cycles], float)
        self._of = {name: np.array([_size(c, name) for c in cycles], float) for name in _SIZES}
        self.exponents = exponents or {name: self._exponent(name) for name in _SIZES}

    def _exponent(self, name: str) -> float:
        drafting = self._gamma > 0
        x = np.log(self._drafted / np.maximum(1, self._gamma)) if name == "draft_s" else np.log(self._positions)
        y = self._of[name]
        used = (y > 0) & (drafting if name in ("draft_s", "early_bytes") else True)
        if used.sum() < 4 or np.ptp(x[used]) < 0.5:
            return 0.5
        return float(np.clip(np.polyfit(x[used], np.log(y[used]), 1)[0], 0.0, 1.0))

    def __call__(self, generator: np.random.Generator, gamma: int, drafted: int, rows: int, done: float) -> CycleStats:
        positions, step_rows = rows + drafted, drafted / gamma if gamma else 1.0
        far = (
            np.log(self._positions / positions) ** 2
            + np.log(self._rows / rows) ** 2
            + (self._done - done) ** 2
            + 9.0 * ((self._gamma > 0) != (gamma > 0))
        )
        near = int(np.argsort(far, kind="stable")[: self.NEAREST][generator.integers(self.NEAREST)])
        scale = {name: (positions / self._positions[near]) ** self.exponents[name] for name in _SIZES}
        scale["draft_s"] = (step_rows * max(1.0, self._gamma[near]) / self._drafted[near]) ** self.exponents["draft_s"]
        size = {name: float(self._of[name][near] * scale[name]) for name in _SIZES}
        early = min(size["moved_bytes"], size["early_bytes"] * gamma)
        return CycleStats(
            gamma, 8, 1, rows, positions=positions, drafted=drafted, moved_bytes=round(size["moved_bytes"]),
            early_bytes=round(early), draft_s=size["draft_s"] * gamma, verify_s=size["compute_s"] + size["wait_s"],
            wait_s=size["wait_s"], busy_s=size["busy_s"], refresh_s=0.0009, other_s=size["other_s"],
        )  # fmt: skip


def _size(cycle: dict[str, Any], name: str) -> float:
    if name == "compute_s":
        return float(max(1e-5, cycle["verify_s"] - cycle["wait_s"] - cycle["refresh_s"]))
    if name in ("draft_s", "early_bytes"):  # by draft step
        return float(cycle[name] / cycle["gamma"]) if cycle["gamma"] else 0.0
    return float(cycle[name])


def recorded_cells(records: Path) -> Iterator[Cell]:
    """One cell per model, budget and batch of the controller's grid and of the sweep over gamma; a request a round."""
    files = [*sorted(records.glob("controller-[ls]*.jsonl")), records / "full" / "ablation-gamma.jsonl"]
    for file in files:
        found: dict[tuple[str, int, int], list[dict[str, Any]]] = {}
        for _, record in read_lines(file):
            cell = record["cell"]
            key = (cell["model"], cell["expert_budget_bytes"], cell["batch_size"])
            if record["status"] == "ok":
                found.setdefault(key, []).append(record)
        for (model, budget, rows), runs in sorted(found.items()):
            yield _recorded_cell(f"{model} {budget / 1e6:.0f} MB batch {rows}", budget, rows, runs)


def _recorded_cell(name: str, budget: int, rows: int, runs: list[dict[str, Any]]) -> Cell:
    tokens = int(runs[0]["cell"]["new_tokens"])
    fixed = [r for r in runs if r["label"] != "controller"]
    longest = max(c["gamma"] for c in _cycles(fixed))
    reach = _reach(runs, longest)
    exponents = Recorded(_cycles(runs)).exponents
    spread = _spread(reach, rows, tokens, fixed)
    chance = _scattered(reach, rows, spread)
    rounds = [[r for r in runs if r["round"] == number] for number in sorted({r["round"] for r in runs})]
    requests = tuple(Request(chance, tokens - 1, Recorded(_cycles(part), exponents)) for part in rounds)
    geometry = GEOMETRIES[name.split(maxsplit=1)[0]]
    absent = geometry.layers * geometry.experts * geometry.expert_bytes - budget
    return Cell(name, requests, geometry.expert_bytes, float(absent))


def _cycles(runs: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        cycle | {"done": number / len(repetition["cycles"])}
        for run in runs
        for repetition in run["repetitions"]
        for number, cycle in enumerate(repetition["cycles"])
    ]


def _reach(runs: list[dict[str, Any]], longest: int) -> np.ndarray:
    """Share of tokens drafted i + 1 places ahead that were kept, float64 [longest]."""
    drafted, kept = np.full(longest, 1e-9), np.zeros(longest)
    for run in runs:
        for repetition in run["repetitions"]:
            for total, name in ((drafted, "drafted_by_position"), (kept, "accepted_by_position")):
                counts = np.array(repetition[name] or [], float)[:longest]
                total[: len(counts)] += counts
    return np.minimum.accumulate(np.clip(kept / drafted, 1e-3, 0.995))


def _scattered(reach: np.ndarray, rows: int, spread: float) -> np.ndarray:
    """Chances by row and place whose mean over rows reaches about as far as ``reach``."""
    chance = reach / np.concatenate([[1.0], reach[:-1]])
    scatter = spread * np.random.default_rng(rows).standard_normal((rows, 1)) if rows > 1 else np.zeros((1, 1))
    shift = np.zeros(len(chance))
    clipped = np.clip(chance, 1e-3, 0.999)
    logit = np.log(clipped / (1 - clipped))
    for _ in range(30):
        rates = 1 / (1 + np.exp(-(logit + shift + scatter)))
        mean = rates.cumprod(axis=1).mean(axis=0)
        got = mean / np.concatenate([[1.0], mean[:-1]])
        shift += np.clip(logit - np.log(np.clip(got, 1e-3, 0.999) / (1 - np.clip(got, 1e-3, 0.999))), -1, 1)
    return rates


def _spread(reach: np.ndarray, rows: int, tokens: int, fixed: list[dict[str, Any]]) -> float:
    """How far rows differ: the scatter with which fixed drafts take as many cycles as were recorded."""
    if rows == 1:
        return 0.0
    wanted = {}
    for run in fixed:
        cycles = run["repetitions"][0]["cycles"]
        gamma = max(c["gamma"] for c in cycles)
        if gamma:
            wanted.setdefault(gamma, []).append(len(cycles))

    def distance(spread: float) -> float:
        chance = _scattered(reach, rows, spread)
        return sum(
            (math.log(_count(chance, tokens - 1, gamma) / np.mean(counts))) ** 2 for gamma, counts in wanted.items()
        )

    return min((0.0, 0.5, 1.0, 1.5, 2.0, 3.0), key=distance)


def _count(chance: np.ndarray, tokens: int, gamma: int) -> float:
    """Mean number of cycles of a request with fixed drafts."""
    counts = []
    for seed in range(6):
        generator = np.random.default_rng(seed)
        remaining, cycles = np.full(len(chance), tokens), 0
        while (remaining > 0).any():
            kept = (generator.random((len(chance), gamma)) < chance[:, :gamma]).cumprod(axis=1).sum(axis=1)
            remaining, cycles = remaining - kept - 1, cycles + 1
        counts.append(cycles)
    return float(np.mean(counts))
