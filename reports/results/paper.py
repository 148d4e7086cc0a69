"""The paper's figures as data, each with its unit, source and conditions.

Source: *SpecMoE: A Fast and Efficient Mixture-of-Experts Inference via Self-Assisted Speculative Decoding*, Bang,
Cho, Hwang, Chung, Rhu, DAC 2026, arXiv 2604.10152.  The full text was not available: the figures come from
independent digests that agree with each other, so a source is *text*, *table* or *figure*, without a page.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ARXIV = "2604.10152"
BATCH_SIZES = (1, 4, 16, 64, 128, 256)

Unit = Literal[
    "tok/s", "ratio", "percent", "tokens per step", "GB", "GB/s", "experts", "layers", "count", "share", "kB"
]
Source = Literal["text", "table: models", "table: draft selection", "table: N", "figure"]


@dataclass(frozen=True)
class Conditions:
    """Conditions under which a figure holds; None if the digests do not state it, or if it does not apply."""

    model: str | None = None
    batch_size: int | None = None
    gamma: int | None = None
    draft_experts: int | None = None
    tier: Literal["cpu", "ssd"] = "cpu"
    system: str | None = None
    against: str | None = None
    """What a ratio or percentage is relative to."""
    note: str = ""


@dataclass(frozen=True)
class Figure:
    """One number of the paper; ``bound`` tells whether it is stated as *up to* (max) or *over* (min)."""

    id: str
    title: str
    value: float
    unit: Unit
    source: Source
    conditions: Conditions
    bound: Literal["exact", "max", "min", "about"] = "exact"


@dataclass(frozen=True)
class Model:
    """A row of the paper's table of models."""

    id: str
    title: str
    experts: int
    top_k: int
    moe_blocks: int
    layers: int
    size_gb: float
    skewness: float
    task: str
    gamma: int
    decoding: str


MODELS = (
    Model("nllb-moe", "NLLB-MoE", 128, 2, 6, 24, 54, 0.84, "WMT-14 En-Fr", 10, "greedy match"),
    Model("llama-4-scout", "Llama-4-Scout", 16, 1, 48, 48, 218, 0.59, "CNN/DailyMail", 5, "sampling, temperature 1"),
    Model("mixtral-8x7b", "Mixtral-8x7B", 8, 2, 32, 32, 94, 0.32, "CNN/DailyMail", 5, "sampling, temperature 1"),
)

_NLLB_256 = Conditions("nllb-moe", batch_size=256, gamma=10, draft_experts=4, system="specmoe")


def _nllb(system: str = "specmoe", against: str | None = None, note: str = "", **changed: int | str) -> Conditions:
    """Conditions of the main experiment, NLLB-MoE at gamma 10, with what differs."""
    fields: dict[str, object] = {"model": "nllb-moe", "system": system, "against": against, "note": note}
    if system == "specmoe":
        fields |= {"gamma": 10, "draft_experts": 4}
    return Conditions(**(fields | changed))  # type: ignore[arg-type]


def _selection(rule: str, id: str, value: float, unit: Unit) -> Figure:
    what = "tokens per step" if unit == "tokens per step" else "speed against random"
    return Figure(
        f"selection.{rule}.{id}",
        f"{rule}: {what}",
        value,
        unit,
        "table: draft selection",
        _nllb(against=None if unit == "tokens per step" else "random", note=f"selection={rule}; batch not stated"),
    )


def _sweep(draft_experts: int, id: str, value: float, unit: Unit) -> Figure:
    what = "T(10)" if unit == "tokens per step" else "throughput"
    note = "batch 256 by its throughput, which equals the headline's at N = 4"
    return Figure(
        f"n-sweep.{draft_experts}.{id}",
        f"N = {draft_experts}: {what}",
        value,
        unit,
        "table: N",
        _nllb(note=note, batch_size=256, draft_experts=draft_experts),
    )


_SETUP = Conditions()
FIGURES: tuple[Figure, ...] = (
    # The machine: H100 96 GB HBM3, 2x Xeon Platinum 8558, 1 TB DDR5.
    Figure("setup.link", "PCIe 5.0 x16, one way", 64, "GB/s", "text", _SETUP),
    Figure("setup.device-memory", "H100 memory", 96, "GB", "text", _SETUP),
    Figure("setup.host-memory", "host memory", 1000, "GB", "text", _SETUP),
    # The problem.
    Figure(
        "problem.migration-share",
        "share of time spent on migration, at most",
        90.11,
        "percent",
        "text",
        Conditions("nllb-moe", system="on-demand"),
        "max",
    ),
    Figure(
        "problem.bytes-per-step",
        "bytes migrated per decode step at large batch",
        28,
        "GB",
        "text",
        Conditions("nllb-moe", system="on-demand", note="'large batch'; which one is not stated"),
        "min",
    ),
    Figure(
        "method.affinity-table",
        "affinity table of NLLB-MoE, all blocks",
        200,
        "kB",
        "text",
        Conditions("nllb-moe", note="128 x 128 x 6 blocks x 2 bytes = 197 kB"),
        "max",
    ),
    Figure(
        "caching.share",
        "experts per block that MoE-Caching keeps",
        10,
        "percent",
        "text",
        Conditions(system="caching", note="about 12 of 128 on NLLB-MoE"),
    ),
    # The main result.
    Figure("throughput.specmoe", "SpecMoE throughput", 123.0, "tok/s", "figure", _NLLB_256),
    Figure(
        "throughput.on-demand",
        "OnDemand throughput",
        28.6,
        "tok/s",
        "figure",
        _nllb("on-demand", batch_size=256),
        "about",
    ),
    Figure(
        "speedup.nllb",
        "NLLB-MoE throughput over OnDemand",
        4.30,
        "ratio",
        "text",
        _nllb(against="on-demand", batch_size=256),
    ),
    Figure(
        "latency.nllb",
        "NLLB-MoE latency, of OnDemand's",
        23,
        "percent",
        "text",
        _nllb(against="on-demand", batch_size=256),
    ),
    Figure(
        "bytes.vs-on-demand",
        "CPU-to-GPU bytes against OnDemand",
        -76.73,
        "percent",
        "text",
        _nllb(against="on-demand", note="batch not stated; the same against Overlap, which moves the same bytes"),
    ),
    Figure(
        "bytes.vs-caching",
        "CPU-to-GPU bytes against Caching",
        -71.89,
        "percent",
        "text",
        _nllb(against="caching", note="batch not stated"),
    ),
    Figure("growth.on-demand", "bytes, batch 1 to 256: OnDemand", 45.28, "ratio", "text", _nllb("on-demand")),
    Figure("growth.caching", "bytes, batch 1 to 256: Caching", 50.97, "ratio", "text", _nllb("caching")),
    Figure("growth.specmoe", "bytes, batch 1 to 256: SpecMoE", 10.96, "ratio", "text", _nllb()),
    # Low-hotness models.
    Figure(
        "speedup.mixtral",
        "Mixtral-8x7B over OnDemand",
        2.17,
        "ratio",
        "figure",
        Conditions("mixtral-8x7b", gamma=5, system="specmoe", against="on-demand", note="ahead only above batch 4"),
        "max",
    ),
    Figure(
        "speedup.scout",
        "Llama-4-Scout over OnDemand",
        1.42,
        "ratio",
        "figure",
        Conditions("llama-4-scout", gamma=5, system="specmoe", against="on-demand"),
        "max",
    ),
    Figure(
        "speedup.overlap.low-hotness",
        "Overlap over OnDemand, Mixtral and Scout",
        1.53,
        "ratio",
        "figure",
        Conditions(system="overlap", against="on-demand", note="the larger of the two models"),
        "max",
    ),
    Figure(
        "speedup.caching.low-hotness",
        "Caching over OnDemand, Mixtral and Scout",
        1.15,
        "ratio",
        "figure",
        Conditions(system="caching", against="on-demand", note="the larger of the two models"),
        "max",
    ),
    # The SSD tier: averages over batch sizes.
    Figure(
        "ssd.specmoe",
        "SpecMoE, SSD tier",
        2.25,
        "ratio",
        "figure",
        _nllb(against="on-demand", tier="ssd", note="average"),
    ),
    Figure(
        "ssd.overlap",
        "Overlap, SSD tier",
        1.05,
        "ratio",
        "figure",
        _nllb("overlap", "on-demand", "average", tier="ssd"),
    ),
    Figure(
        "ssd.caching",
        "Caching, SSD tier",
        1.29,
        "ratio",
        "figure",
        _nllb("caching", "on-demand", "average", tier="ssd"),
    ),
    Figure(
        "affinity.gain",
        "tokens per step, affinity over random mapping",
        7.23,
        "percent",
        "text",
        _nllb(against="random substitution"),
    ),
    # Draft experts chosen by (N = 4).
    _selection("random", "tokens", 6.812, "tokens per step"),
    _selection("hot-global", "tokens", 7.220, "tokens per step"),
    _selection("hot-temporal", "tokens", 7.265, "tokens per step"),
    _selection("random", "speed", 1.000, "ratio"),
    _selection("hot-global", "speed", 1.084, "ratio"),
    _selection("hot-temporal", "speed", 1.143, "ratio"),
    # The sweep of N.
    _sweep(2, "tokens", 6.929, "tokens per step"),
    _sweep(4, "tokens", 7.265, "tokens per step"),
    _sweep(8, "tokens", 7.620, "tokens per step"),
    _sweep(16, "tokens", 7.819, "tokens per step"),
    _sweep(2, "throughput", 116.40, "tok/s"),
    _sweep(4, "throughput", 122.97, "tok/s"),
    _sweep(8, "throughput", 121.31, "tok/s"),
    _sweep(16, "throughput", 117.16, "tok/s"),
)

_BY_ID = {figure.id: figure for figure in FIGURES}


def figure(id: str) -> Figure:
    """The figure with this id.

    Raises:
        KeyError: unknown id.
    """
    return _BY_ID[id]


def model(id: str) -> Model:
    """The model of the paper with this id.

    Raises:
        KeyError: unknown id.
    """
    for known in MODELS:
        if known.id == id:
            return known
    raise KeyError(f"the paper has no model {id!r}: use {', '.join(m.id for m in MODELS)}")
