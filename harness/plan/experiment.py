"""The experiment: one validated object that expands into cells."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from baselines import registry
from baselines.decoding import Decoding
from harness.plan import link_share
from harness.plan.errors import Assigned, ConfigError, config_error
from harness.plan.sizes import ExpertSizes
from reports.results.record import Cell
from specmoe.offload.device import canonical, default_device
from specmoe.offload.slow_tier import SlowTier, default_tier
from specmoe.sizes import parse_bytes
from workloads.arrivals import Poisson
from workloads.lengths import Fixed, Length

Bytes = int | str
Dtype = Literal["float32", "bfloat16", "float16"]
FILL = "fill"
"""An expert budget: what the process limit leaves."""

T = TypeVar("T")
_SWEPT = "swept"
Swept = Annotated[list[T], BeforeValidator(lambda v: v if isinstance(v, list) else [v]), Field(min_length=1), _SWEPT]
"""One value or a list of values; each combination of the swept fields becomes a cell per system."""


class SystemEntry(BaseModel):
    """One system of an experiment.  Options given as lists are swept.

    ``expert_budget: fill`` gives the system what the process limit leaves beside its other memory, as it measures it.
    The limit is the same as for every system, so others must set it: the experiment's own ``expert_budget`` cannot be
    ``fill``.  ``first_tokens`` shortens a slow system: it generates only the first so many tokens of each row, its
    rates are over those, and records and pages say so.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    system: str
    label: str | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    expert_budget: Bytes | None = None
    first_tokens: int | None = Field(default=None, ge=2)

    def variants(self) -> list[dict[str, Any]]:
        """Every combination of listed option values."""
        names = list(self.options)
        values = [v if isinstance(v, list) else [v] for v in self.options.values()]
        return [dict(zip(names, combination, strict=True)) for combination in itertools.product(*values)]

    def label_of(self, options: dict[str, Any]) -> str:
        """The entry's label, or the system's name with its options."""
        swept = {k: v for k, v in options.items() if isinstance(self.options[k], list) or self.label is None}
        name = self.label or self.system
        return name + "".join(f" {_SHORT.get(k, k)}={v}" for k, v in swept.items())


_SHORT = {"gamma": "γ", "draft_experts": "N"}


class Experiment(BaseModel):
    """Everything that defines an experiment.

    Options of systems and the fields typed ``Swept`` may be lists, which are swept in every combination.
    ``expert_budget`` holds for every system that has none of its own: bytes, ``"256MB"`` or ``"25%"`` of all experts.
    Systems compute in ``dtype``; ``stored_dtype`` is that of the experts in the slow tier, whose bytes budgets count:
    null is the checkpoint's own where widening it to ``dtype`` is exact, else ``dtype``.
    Systems compute and keep resident experts on ``device`` (``cpu``, ``cuda``, ``cuda:1``); null is the first GPU, or
    the CPU where there is none.  All experts rest in ``slow_tier``: ``disk``, ``host`` (memory of the process, pinned
    where there is a GPU), or ``paced:25GB/s+10us``, host memory whose transfers take as long as on a link of that rate
    and latency (``paced:memory/50``: a fiftieth of this machine's calibrated memory rate), which makes results
    ``emulated``; null is host memory behind a GPU and the disk behind a CPU.
    ``process_overhead`` plus the largest budget in bytes, plus all experts where they rest in host memory, is the
    kernel's memory limit, the same for every process; null means no limit.  Upper bounds that hold everything in memory
    (card ``limited=False``) run without it, and their records say so.  ``device_overhead`` plus the largest budget caps
    a GPU's memory for systems that know no expert budget, where torch allocates it; null means no cap.
    ``disk_read_limit`` (``"500MB"``, per second) has the kernel throttle reads, to emulate a slower disk; such results
    are of kind ``emulated``.  A failed or timed-out cell is tried again ``retries`` times; every failure keeps its
    record.
    ``prompts`` is a name or file as in ``workloads.prompts.load``; ``prompt_tokens`` and ``new_tokens`` (an alias is
    ``output_tokens``) are lengths as in ``workloads.lengths``, drawn with ``request_seed``.
    With ``requests`` a cell is a queue of so many, of which a system decodes a batch size at once; ``arrivals`` are
    ``closed`` (all at once) or ``{process: poisson, rate_per_s: 0.5}``, drawn with ``request_seed``, and
    ``latency_limit_s`` is the latency that goodput counts.
    ``decoding`` is how tokens are chosen: null is greedily, ``{temperature: 1, top_k: 0, top_p: 1, seed: 0}`` draws.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1)
    title: str | None = None
    model: str
    dtype: Dtype = "float32"
    stored_dtype: Swept[Dtype | None] = Field(default=[None])
    systems: list[SystemEntry] = Field(min_length=1)
    batch_sizes: Annotated[list[int], _SWEPT] = Field(min_length=1)
    new_tokens: Swept[Length] = Field(default=[Fixed(32)], validation_alias=AliasChoices("new_tokens", "output_tokens"))
    prompt_tokens: Swept[Length | None] = Field(default=[None])
    request_seed: int = 0
    expert_budget: Swept[Bytes] = Field(default=["25%"])
    process_overhead: Bytes | None = "900MB"
    device_overhead: Bytes | None = None
    rounds: int = Field(default=3, ge=1)
    repetitions: int = Field(default=1, ge=1)
    warmup_tokens: int = Field(default=4, ge=0)
    threads: Swept[Annotated[int, Field(ge=1)]] = Field(default=[2])
    prompt_offset: Swept[Annotated[int, Field(ge=0)]] = Field(default=[0])
    disk_read_limit: Swept[Bytes | None] = Field(default=[None])
    device: Swept[str | None] = Field(default=[None])
    slow_tier: Swept[str | None] = Field(default=[None])
    prompts: Swept[str | None] = Field(default=[None])
    decoding: Swept[Decoding | None] = Field(default=[None])
    requests: Swept[Annotated[int, Field(ge=1)] | None] = Field(default=[None])
    arrivals: Swept[Literal["closed"] | Poisson] = Field(default=["closed"])
    latency_limit_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    timeout_s: float = Field(default=600, gt=0, allow_inf_nan=False)
    retries: int = Field(default=0, ge=0, le=10)
    seed: int = 0

    @field_validator("batch_sizes")
    @classmethod
    def _positive(cls, sizes: list[int]) -> list[int]:
        if any(size < 1 for size in sizes):
            raise ValueError("batch sizes must be 1 or more")
        return sizes

    @field_validator("expert_budget")
    @classmethod
    def _of_known_size(cls, budgets: list[Bytes]) -> list[Bytes]:
        if FILL in budgets:
            raise ValueError(
                "fill is what the process limit leaves, and the limit is a budget plus process_overhead: "
                "give a size here, and fill to single systems"
            )
        return budgets

    @field_validator("device")
    @classmethod
    def _known_devices(cls, devices: list[str | None]) -> list[str | None]:
        return [None if name is None else canonical(name) for name in devices]

    @field_validator("slow_tier")
    @classmethod
    def _known_tiers(cls, tiers: list[str | None]) -> list[str | None]:
        return [None if text is None else link_share.canonical(text) for text in tiers]

    @model_validator(mode="after")
    def _queue(self) -> Experiment:
        if None in self.requests and (self.arrivals != ["closed"] or self.latency_limit_s is not None):
            raise ValueError("arrivals and latency_limit_s are those of a queue: set requests")
        return self

    @field_validator("new_tokens")
    @classmethod
    def _decoded(cls, lengths: list[Length]) -> list[Length]:
        if any(length.lowest < 2 for length in lengths):
            raise ValueError("the first token of a row comes from the prefill: ask for 2 or more")
        return lengths


class PlannedCell(BaseModel):
    """A cell and its label in tables and figures."""

    model_config = ConfigDict(frozen=True)

    label: str
    cell: Cell


def plan(experiment: Experiment, sizes: ExpertSizes, memory_read_gb_s: float | None = None) -> list[PlannedCell]:
    """Expand an experiment into cells for a model with experts of ``sizes``, on a machine of a calibrated memory rate.

    Raises:
        ConfigError: an unknown system or option, a malformed budget, two equal cells, or a slow tier that is a share of
            the memory rate where that is None.
    """
    fixed = {name: getattr(experiment, name) for name in Cell.model_fields if name in Experiment.model_fields}
    planned = []
    for entry, chosen in expand(experiment):
        settings = chosen | {
            "stored_dtype": chosen["stored_dtype"] or sizes.own,
            **_place(experiment, chosen, memory_read_gb_s),
        }
        everything = sizes.total_bytes(settings["stored_dtype"])
        fixed["process_limit_bytes"] = _process_limit(experiment, everything, settings["slow_tier"])
        fixed["device_limit_bytes"] = None
        if settings["device"] != "cpu" and experiment.device_overhead is not None:
            overhead = _bytes(experiment.device_overhead, everything, "device_overhead")
            fixed["device_limit_bytes"] = _largest_budget(experiment, everything) + overhead
        most = chosen["new_tokens"].highest
        shortened = entry.first_tokens is not None and entry.first_tokens < most
        fixed["first_tokens"] = entry.first_tokens if shortened else None
        swept = {key: value for name in settings for key, value in _to_cell(name, settings[name], everything).items()}
        if swept.get("fills_limit"):
            _check_fill(experiment, entry)
        for options in variants_of(experiment, entry):
            cell = Cell(system=entry.system, options=options, **fixed | swept)
            planned.append(PlannedCell(label=entry.label_of(options), cell=cell))
    ids = [p.cell.cell_id for p in planned]
    if len(set(ids)) != len(ids):
        raise ConfigError(f"experiment {experiment.name!r} has the same cell twice: remove one")
    return planned


def expand(experiment: Experiment) -> Iterator[tuple[SystemEntry, dict[str, Any]]]:
    """Every system with every combination of the swept fields; a system's own value replaces the experiment's."""
    axes = {name: getattr(experiment, name) for name, field in Experiment.model_fields.items() if _is_swept(field)}
    own = {name: axes.pop(name) for name in SystemEntry.model_fields if name in axes}
    for shared in _combinations(axes):
        for entry in experiment.systems:
            values = {name: common if (v := getattr(entry, name)) is None else [v] for name, common in own.items()}
            for rest in _combinations(values):
                yield entry, shared | rest


def _is_swept(field: FieldInfo) -> bool:
    return _SWEPT in field.metadata


def _combinations(axes: Mapping[str, list[Any]]) -> Iterator[dict[str, Any]]:
    for values in itertools.product(*axes.values()):
        yield dict(zip(axes, values, strict=True))


def _to_cell(name: str, value: Any, everything: int) -> dict[str, Any]:
    """A swept value as fields of the cell: of the same name, unless the cell has it in another unit or form."""
    match name:
        case "batch_sizes":
            return {"batch_size": value}
        case "new_tokens":
            return {"new_tokens": value.highest, "output_tokens": None if isinstance(value, Fixed) else value}
        case "expert_budget":
            if value == FILL:
                return {"expert_budget_bytes": everything, "fills_limit": True}
            return {"expert_budget_bytes": _bytes(value, everything, name)}
        case "arrivals":
            return {"arrivals": None if value == "closed" else value}
        case "disk_read_limit":
            return {"disk_read_limit_bytes_s": None if value is None else _bytes(value, None, name)}
    return {name: value}


def _place(experiment: Experiment, chosen: Mapping[str, Any], memory_read_gb_s: float | None) -> dict[str, str]:
    """The device and slow tier that a combination names or leaves to the machine."""
    device = chosen["device"] or default_device()
    slow_tier = link_share.resolved(chosen["slow_tier"] or default_tier(device), memory_read_gb_s)
    if chosen["disk_read_limit"] is not None and SlowTier.of(slow_tier).in_memory:
        raise ConfigError(
            f"experiment {experiment.name!r}: disk_read_limit slows a disk, and slow_tier {slow_tier} reads none: "
            "set slow_tier: disk, or state a rate with slow_tier: paced:25GB/s instead"
        )
    return {"device": device, "slow_tier": slow_tier}


def _process_limit(experiment: Experiment, everything: int, slow_tier: str) -> int | None:
    """The largest budget, the overhead, and all experts if they are in memory: the limit of every process.

    None means no limit.
    """
    if experiment.process_overhead is None:
        return None
    held = everything if SlowTier.of(slow_tier).in_memory else 0
    overhead = _bytes(experiment.process_overhead, everything, "process_overhead")
    return _largest_budget(experiment, everything) + held + overhead


def _largest_budget(experiment: Experiment, everything: int) -> int:
    own = [entry.expert_budget for entry in experiment.systems if entry.expert_budget not in (None, FILL)]
    return max(_bytes(budget, everything, "expert_budget") for budget in [*experiment.expert_budget, *own])


def _check_fill(experiment: Experiment, entry: SystemEntry) -> None:
    if experiment.process_overhead is None:
        raise ConfigError(
            f"experiment {experiment.name!r}: expert_budget: fill of {entry.system!r} is what a process limit leaves, "
            "and process_overhead: null sets none: give process_overhead a size"
        )
    card = registry.systems()[entry.system].card if entry.system in registry.systems() else None
    if card is not None and not card.fills_limit:
        able = ", ".join(sorted(name for name, system in registry.systems().items() if system.card.fills_limit))
        why = "chooses no budget within a limit" if card.knows_budget else "takes what the limit leaves by itself"
        raise ConfigError(
            f"experiment {experiment.name!r}: {entry.system!r} {why}: remove expert_budget: fill (for {able} only)"
        )


def variants_of(experiment: Experiment, entry: SystemEntry) -> list[dict[str, Any]]:
    """Every combination of a system's options.

    Raises:
        ConfigError: an unknown system or option, a value out of range, or an empty list of values.
    """
    variants = entry.variants()
    if not variants:
        raise ConfigError(
            f"experiment {experiment.name!r}: an option of {entry.system!r} is an empty list: give a value"
        )
    for options in variants:
        try:
            registry.create(entry.system, options)
        except ValueError as error:
            raise ConfigError(f"experiment {experiment.name!r}: {error}") from error
    return variants


def _bytes(value: Bytes, everything: int | None, field: str) -> int:
    """Bytes of a size; shares are of ``everything``, and refused if that is None."""
    if everything is None and "%" in str(value):
        raise ConfigError(f"{field}: {value!r} is a share, but this field has no whole: give bytes, such as '500MB'")
    try:
        return parse_bytes(value, everything or 0, f"{field}:")
    except (ValueError, OverflowError) as error:
        raise ConfigError(str(error)) from error


def validate(payload: Any, where: str, assigned: Assigned = MappingProxyType({})) -> Experiment:
    """An experiment from plain data.

    Raises:
        ConfigError: names the first field that is wrong, and ``where`` or the assignment that set it.
    """
    try:
        return Experiment.model_validate(payload)
    except ValidationError as error:
        raise config_error(error, where, [*Experiment.model_fields, *SystemEntry.model_fields], assigned) from error
