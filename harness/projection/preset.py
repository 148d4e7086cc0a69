"""Projects the paper's table: every figure that a model of routing and timing can predict, next to the paper's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from statistics import mean

from harness.projection import inputs, scenario
from harness.projection.grid import timed
from harness.projection.hardware import H100_PCIE5, Hardware
from harness.projection.models import ModelSizes
from harness.projection.scenario import Routing, System, acceptance_for
from harness.projection.simulation import Timed
from reports.results import paper
from specmoe.options import Selection

LARGEST = paper.BATCH_SIZES[-1]


@dataclass(frozen=True)
class Row:
    """One figure of the paper.

    ``projected`` uses the link rate that the paper's own figures imply, ``nominal`` PCIe's 64 GB/s; they are equal for
    figures that do not depend on time.  ``role`` is a ``prediction``, or an ``input`` of the projection; ``why``
    explains a difference.
    """

    id: str
    title: str
    unit: str
    paper: float
    projected: float
    nominal: float
    role: str = "prediction"
    why: str = ""

    @property
    def error(self) -> float:
        """Relative difference from the paper's figure."""
        return self.projected / self.paper - 1


@dataclass(frozen=True)
class _Machines:
    """The paper's machine with the link rate implied by its figures, and with that of the data sheet."""

    implied: Hardware
    nominal: Hardware


def _machines() -> _Machines:
    return _Machines(inputs.paper_machine(), H100_PCIE5)


def rows() -> list[Row]:
    """All rows, in the paper's order."""
    machines = _machines()
    groups = (_headline, _bytes, _low_hotness, _ssd, _selection, _n_sweep)
    return [row for group in groups for row in group(machines)]


def _row(id: str, at: Callable[[Hardware], float], machines: _Machines, role: str = "prediction", why: str = "") -> Row:
    figure = paper.figure(id)
    return Row(id, figure.title, figure.unit, figure.value, at(machines.implied), at(machines.nominal), role, why)


def _speedup(model: str, system: System, batch: int, machine: Hardware) -> float:
    return timed(model, system, batch, machine).tok_s / timed(model, "on-demand", batch, machine).tok_s


def _headline(machines: _Machines) -> list[Row]:
    def rate(system: System) -> Callable[[Hardware], float]:
        return lambda machine: timed("nllb-moe", system, LARGEST, machine).tok_s

    return [
        _row("throughput.on-demand", rate("on-demand"), machines, "input", _WHY_RATE),
        _row("throughput.specmoe", rate("specmoe"), machines),
        _row("speedup.nllb", lambda m: _speedup("nllb-moe", "specmoe", LARGEST, m), machines, why=_WHY_SPEEDUP),
        _row("latency.nllb", lambda m: 100 / _speedup("nllb-moe", "specmoe", LARGEST, m), machines, why=_WHY_SPEEDUP),
        _row("problem.bytes-per-step", _step_gb, machines, "input", _WHY_RATE),
    ]


def _step_gb(machine: Hardware) -> float:
    one = timed("nllb-moe", "on-demand", LARGEST, machine)
    return one.moved_bytes * LARGEST / one.row_steps / 1e9


def _bytes(machines: _Machines) -> list[Row]:
    def less(against: System) -> Callable[[Hardware], float]:
        def change(machine: Hardware) -> float:
            ours, theirs = (timed("nllb-moe", s, LARGEST, machine).bytes_per_token for s in ("specmoe", against))  # type: ignore[arg-type]
            return 100 * (ours / theirs - 1)

        return change

    def growth(system: System) -> Callable[[Hardware], float]:
        def ratio(machine: Hardware) -> float:
            least, most = (timed("nllb-moe", system, batch, machine) for batch in (1, LARGEST))
            return (
                (most.moved_bytes * LARGEST / most.row_steps)
                / (least.moved_bytes / least.row_steps)
                / _steps(system, least, most)
            )

        return ratio

    return [
        _row("bytes.vs-on-demand", less("on-demand"), machines),
        _row("bytes.vs-caching", less("caching"), machines, why=_WHY_CACHING),
        _row("growth.on-demand", growth("on-demand"), machines, why=_WHY_GROWTH),
        _row("growth.caching", growth("caching"), machines, why=f"{_WHY_GROWTH} {_WHY_CACHING}"),
        _row("growth.specmoe", growth("specmoe"), machines, why=_WHY_GROWTH),
    ]


def _steps(system: System, least: Timed, most: Timed) -> float:
    """Divisor that makes growth one of bytes per token: a cycle of SpecMoE yields several."""
    return most.tokens_per_step / least.tokens_per_step if system == "specmoe" else 1.0


def _low_hotness(machines: _Machines) -> list[Row]:
    models = {"speedup.mixtral": "mixtral-8x7b", "speedup.scout": "llama-4-scout"}

    def best(system: System, *names: str) -> Callable[[Hardware], float]:
        return lambda m: max(_speedup(name, system, batch, m) for name in names for batch in paper.BATCH_SIZES)

    return [
        *(_row(id, best("specmoe", name), machines, why=_implied_acceptance(id, name)) for id, name in models.items()),
        _row("speedup.overlap.low-hotness", best("overlap", *models.values()), machines, why=_WHY_OVERLAP),
        _row("speedup.caching.low-hotness", best("caching", *models.values()), machines, why=_WHY_CACHING),
    ]


def _implied_acceptance(id: str, name: str) -> str:
    """The acceptance that would give the paper's figure, as speed is proportional to the tokens of a cycle."""
    machine, given = inputs.paper_machine(), inputs.of_model(name).routing
    best = max(paper.BATCH_SIZES, key=lambda batch: _speedup(name, "specmoe", batch, machine))
    one = timed(name, "specmoe", best, machine)
    tokens = one.tokens_per_step * paper.figure(id).value / _speedup(name, "specmoe", best, machine)
    reached = "no acceptance gives the paper's figure"
    if 1 <= tokens <= given.gamma + 1:
        needed = acceptance_for(tokens, given.gamma)
        reached = f"the paper's figure would need T({given.gamma}) = {tokens:.2f}, acceptance {needed:.2f}"
    return f"N and acceptance are assumed ({given.draft_experts}, {given.acceptance}); with this N {reached}."


def _ssd(machines: _Machines) -> list[Row]:
    drive = inputs.ssd_machine()

    def average(system: System) -> Callable[[Hardware], float]:
        return lambda _: mean(_speedup("nllb-moe", system, batch, drive) for batch in paper.BATCH_SIZES)

    systems: dict[str, System] = {"ssd.specmoe": "specmoe", "ssd.overlap": "overlap", "ssd.caching": "caching"}
    return [
        _row(id, average(system), machines, why=_WHY_CACHING if system == "caching" else _WHY_SSD)
        for id, system in systems.items()
    ]


def _selection(machines: _Machines) -> list[Row]:
    """Speed relative to randomly chosen draft experts, with the paper's tokens per step for each selection."""
    found = []
    for name in ("hot-global", "hot-temporal"):
        speed = partial(_speed_over_random, name)
        found.append(_row(f"selection.{name}.speed", speed, machines, why=_WHY_SELECTION))
    return found


def _speed_over_random(name: Selection, machine: Hardware) -> float:
    given = inputs.nllb()
    rates = []
    for selection in (name, "random"):
        tokens = paper.figure(f"selection.{selection}.tokens").value
        accepted = acceptance_for(tokens, given.routing.gamma)
        routing = replace(given.routing, selection=selection, acceptance=accepted)
        rates.append(_tok_s(given.model, routing, machine))
    return rates[0] / rates[1]


def _n_sweep(machines: _Machines) -> list[Row]:
    given = inputs.nllb()
    found = []
    for draft_experts in (2, 4, 8, 16):
        role = "input" if draft_experts == given.routing.draft_experts else "prediction"
        tokens, rate = (f"n-sweep.{draft_experts}.{what}" for what in ("tokens", "throughput"))
        routing = scenario.with_draft_experts(given.model, given.routing, LARGEST, draft_experts)
        expected = scenario.expected_tokens(routing.acceptance, routing.gamma)
        found.append(_row(tokens, partial(_always, expected), machines, role, _WHY_N))
        found.append(_row(rate, partial(_tok_s, given.model, routing), machines, why=_WHY_N))
    return found


def _always(value: float, machine: Hardware) -> float:
    return value


def _tok_s(model: ModelSizes, routing: Routing, machine: Hardware) -> float:
    return scenario.run("specmoe", model, routing, machine, LARGEST).tok_s


_WHY_RATE = (
    "The link rate is derived from the paper's OnDemand figures, so this row only checks the inputs for consistency; "
    "with the nominal 64 GB/s a step would be about seventeen times as fast."
)
_WHY_SPEEDUP = (
    "With such a slow link, speed follows the bytes moved; the projection moves slightly more of them than the paper."
)
_WHY_GROWTH = (
    "At batch 1 a step needs two experts per block, so x45.28 means 90.6 of 128 experts per block at batch 256, or "
    "36 GB per step. The paper also states 28 GB, which are 69.5 experts, close to what routing of skewness 0.84 gives "
    "here. The two figures agree only if OnDemand moved fewer than two experts per block at batch 1."
)
_WHY_CACHING = (
    "The paper's percentages imply that Caching moves 17 % less than OnDemand at batch 256 and 26 % less at batch 1. "
    "A cache of the most used experts, on routing of this skew, has far more hits at small batch sizes: the paper's "
    "cached experts were not the hot ones of the measured text. How they were chosen is unknown."
)
_WHY_OVERLAP = (
    "Overlap can hide at most the compute time: the paper's 1.53 needs compute of half the migration time. Here it is "
    "close to zero with the implied link rate and a few percent with the nominal one: the paper's implementation "
    "spends more time on compute than a roofline with eager launches."
)
_WHY_SSD = "The drive is unknown; with any drive, speed follows the bytes moved, averaged over batch sizes."
_WHY_N = (
    "T(10) follows from coverage and from the paper's T(10) at N = 4 with hot and random experts. The paper's "
    "throughput falls from N = 8 on, although more pinned experts save bytes and raise acceptance: this model has no "
    "cost that would explain it."
)
_WHY_SELECTION = (
    "The popularity of experts does not change over time in synthetic routing, so HotTemporal cannot gain over "
    "HotGlobal."
)
