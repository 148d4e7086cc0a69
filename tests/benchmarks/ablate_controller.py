"""Ablation of the controller on simulated machines, in virtual time: speed over the best fixed gamma, part by part.

``python -m tests.benchmarks.ablate_controller`` writes ``docs/records/controller-ablation.json`` (about half an hour);
``--table`` prints it, ``--figure`` draws ``docs/figures/controller-terms.png``.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from reports.figures.style import PHASES
from reports.results.lines import read_lines
from specmoe.control.controller import Adaptive
from specmoe.control.trials import Knobs
from specmoe.options import SpecOptions
from tests import ROOT
from tests.benchmarks.controller_variants import VARIANTS, Counted
from tests.specmoe.control.machines import (
    EXPERT_BYTES,
    LONGEST,
    Cell,
    FixedGamma,
    Machine,
    drift_cells,
    grid_cells,
)
from tests.specmoe.control.recorded import recorded_cells

RECORD = ROOT / "docs" / "records" / "controller-ablation.json"
FIGURE = ROOT / "docs" / "figures" / "controller-terms.png"
SEEDS = 8
TERMS = ("draft", "verify")


def endless(build: Callable[..., Adaptive]) -> dict[str, float]:
    """Speed over the best fixed gamma in 200 cycles of the test's machines, mean of three seeds."""
    ratios = {}
    for rows, rate, step_s, link in product((1, 8, 64), (0.05, 0.5, 0.8, 0.95), (0.001, 0.008), (1e8, 4e9)):
        name = f"batch {rows}, acceptance {rate}, draft {step_s} s, link {link / 1e9} GB/s"
        machines = [Machine([rate] * rows, step_s, link_bytes_s=link, seed=seed) for seed in range(3)]
        options = SpecOptions.of(gamma=LONGEST, controller="auto")
        controllers = [build(options, EXPERT_BYTES, 64 * EXPERT_BYTES, 8) for _ in machines]
        rates = [m.run(c, 200) / m.best_fixed() for m, c in zip(machines, controllers, strict=True)]
        ratios[name] = float(np.mean(rates))
    return ratios


def fixed_s(cell: Cell) -> float:
    """Seconds with the best fixed gamma, mean over seeds."""
    longest = cell.requests[0].longest
    return min(_mean_s(cell, lambda g=gamma: FixedGamma(g)) for gamma in range(longest + 1))


def adaptive_s(cell: Cell, build: Callable[..., Adaptive]) -> float:
    options = SpecOptions.of(gamma=cell.requests[0].longest, controller="auto", draft_experts=8, draft_pool="resident")
    return _mean_s(cell, lambda: build(options, cell.expert_bytes, cell.absent_bytes, 9))


def _mean_s(cell: Cell, build: Callable[[], Any]) -> float:
    return float(np.mean([cell.requests[s % len(cell.requests)].seconds(build(), s) for s in range(SEEDS)]))


def ablate(variants: Iterable[str]) -> dict[str, dict[str, dict[str, float]]]:
    """Speed over the best fixed gamma by variant, family of machines and cell."""
    families = {
        "requests": list(grid_cells()),
        "drift": list(drift_cells()),
        "recorded": list(recorded_cells(ROOT / "docs" / "records")),
    }
    best_s = {cell.name: fixed_s(cell) for cells in families.values() for cell in cells}
    found: dict[str, dict[str, dict[str, float]]] = {}
    for variant in variants:
        build = VARIANTS[variant]
        ratios = {
            name: {c.name: best_s[c.name] / adaptive_s(c, build) for c in cells} for name, cells in families.items()
        }
        ratios = {"endless": endless(build)} | ratios
        found[variant] = {name: {c: round(r, 4) for c, r in of_cells.items()} for name, of_cells in ratios.items()}
        print(variant, {name: _mean_and_least(of_cells.values()) for name, of_cells in ratios.items()}, flush=True)
    return found


def _mean_and_least(ratios: Iterable[float]) -> str:
    values = np.array(list(ratios))
    return f"{np.exp(np.log(values).mean()):.3f} ({values.min():.3f})"


def table(record: dict[str, Any]) -> str:
    """Geometric mean (least cell) by variant and family, as Markdown; then the change from ``as it is`` in percent."""
    base = record["variants"]["as it is"]
    lines = [f"| | {' | '.join(base)} |", "|---|" + "---|" * len(base)]
    for variant, families in record["variants"].items():
        cells = []
        for name, ratios in families.items():
            change = np.array([100 * np.log(ratios[cell] / base[name][cell]) for cell in ratios])
            error = change.std(ddof=1) / np.sqrt(len(change))
            cells.append(f"{_mean_and_least(ratios.values())}, {change.mean():+.1f} ± {error:.1f} %")
        lines.append(f"| {variant} | {' | '.join(cells)} |")
    return "\n".join(lines)


def knobs_over_none(file: str, option: str, start: int, tokens: int) -> float:
    """Speed with trials of N and the refresh interval over none, on recorded drafting cycles by one of the two."""
    cycles: dict[int, list[tuple[int, float, int]]] = {}
    for _, record in read_lines(ROOT / "docs" / "records" / file):
        batch, value = record["cell"]["batch_size"], record["cell"]["options"][option]
        for c in record["repetitions"][0]["cycles"]:
            if c["gamma"] and c["rows"] == batch:
                seconds = c["draft_s"] + c["verify_s"] + c["other_s"]
                cycles.setdefault(value, []).append((c["tokens"], seconds, batch))

    def request_s(seed: int, learns: bool) -> float:
        generator, knobs, done, seconds = np.random.default_rng(seed), Knobs(8, 32, 1), 0, 0.0
        setattr(knobs, option, start)
        while True:
            nearest = min(cycles, key=lambda value: abs(math.log(value / getattr(knobs, option))))
            given, cycle_s, batch = cycles[nearest][generator.integers(len(cycles[nearest]))]
            done, seconds = done + given, seconds + cycle_s
            if done >= tokens * batch:
                return seconds
            if learns:
                knobs.learn(given / cycle_s / batch)

    ratios = [request_s(seed, learns=False) / request_s(seed, learns=True) for seed in range(100)]
    return float(np.mean(ratios))


def knobs() -> dict[str, float]:
    starts = (("full/ablation-n.jsonl", "draft_experts", 8), ("full/ablation-n.jsonl", "draft_experts", 2))
    starts += (("ablation-refresh.jsonl", "refresh_interval", 1),)
    return {
        f"{option} from {start}, {tokens} tokens": round(knobs_over_none(file, option, start, tokens), 3)
        for file, option, start in starts
        for tokens in (64, 256, 1024)
    }


class Pictured(Counted):
    """Keeps what it weighed in a decision after a few cycles."""

    weighed: tuple[np.ndarray, np.ndarray] | None = None  # ms per token [2 terms, g + 1], tokens per second [g + 1]

    def _rates(self, remaining: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rates, times_s = super()._rates(remaining)
        if self._cycle >= 8 and self.weighed is None:
            gammas = np.arange(len(rates))
            terms_s = np.array(self._costs.terms_s(gammas, len(remaining) * (1.0 + gammas), float(len(remaining))))
            self.weighed = 1e3 * terms_s / terms_s.sum(axis=0) / rates, rates
        return rates, times_s


def draw(path: Path) -> None:
    """What the controller weighs in one simulated cell: cost terms per token by gamma, and the rate."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    cell = next(c for c in grid_cells() if c.name == "embedded-x32 20 % batch 16 dear link")
    options = SpecOptions.of(gamma=12, controller="auto", draft_pool="resident")
    controller = Pictured(options, cell.expert_bytes, cell.absent_bytes, 9)
    cell.requests[0].seconds(controller, seed=0)
    assert controller.weighed is not None
    terms_ms, rates = controller.weighed
    gammas, best = np.arange(len(rates)), int(rates.argmax())
    figure, (upper, lower) = pyplot.subplots(2, 1, figsize=(6.4, 4.6), sharex=True, height_ratios=(3, 2))
    bottom = np.zeros(len(rates))
    for term_ms, label, color in zip(
        terms_ms, ("draft", "verify, waits for the link included"), (PHASES[name][0] for name in TERMS), strict=True
    ):
        upper.bar(gammas, term_ms, bottom=bottom, label=label, color=color, width=0.8)
        bottom += term_ms
    upper.annotate(
        "chosen", (best, bottom[best]), (best, bottom.max() * 0.95), ha="center", arrowprops={"arrowstyle": "->"}
    )
    upper.set_ylabel("ms per token")
    upper.legend(frameon=False, loc="upper right", ncols=2)
    upper.set_ylim(0, bottom.max() * 1.25)
    lower.plot(gammas, rates, color="#333333", marker="o", markersize=3.5)
    lower.plot(best, rates[best], color="#D55E00", marker="o", markersize=8)
    lower.set_ylabel("expected tokens/s")
    lower.set_xlabel("draft length γ")
    lower.set_xticks(gammas)
    lower.set_ylim(0, rates.max() * 1.12)
    for axes in (upper, lower):
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--figure", action="store_true", help=f"draw {FIGURE.name} only")
    parser.add_argument("--table", action="store_true", help="print the committed record as a table only")
    parser.add_argument("--only", nargs="*", choices=list(VARIANTS), help="measure these variants, keep the others")
    args = parser.parse_args()
    if args.table:
        print(table(json.loads(RECORD.read_text())))
        return
    if args.figure:
        draw(FIGURE)
        return
    found = ablate(args.only or VARIANTS)
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    record |= {"seeds": SEEDS, "variants": record.get("variants", {}) | found, "knobs": knobs()}
    RECORD.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
