"""The experiment: one validated object (from YAML or a preset) that expands into cells."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from baselines import contract
from harness.record import Cell
from specmoe.sizes import parse_bytes

Bytes = int | str


class ConfigError(ValueError):
    """A config that cannot be run; the message names the field and the mend."""


class SystemEntry(BaseModel):
    """One system of an experiment.  Options given as lists are swept."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    system: str
    label: str | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    expert_budget: Bytes | None = None

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
    """Everything that decides an experiment.

    ``expert_budget`` is per system unless an entry has its own: bytes, ``"256MB"`` or ``"25%"`` of all
    experts.  ``process_overhead`` is added to the largest budget to give the kernel's limit for every
    process alike; null means no limit.  Bounds that hold everything (card ``limited=False``)
    run without it, and their record says so.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1)
    model: str
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    systems: list[SystemEntry] = Field(min_length=1)
    batch_sizes: list[int] = Field(min_length=1)
    new_tokens: int = Field(default=32, ge=2)
    expert_budget: Bytes = "25%"
    process_overhead: Bytes | None = "900MB"
    rounds: int = Field(default=3, ge=1)
    repetitions: int = Field(default=1, ge=1)
    warmup_tokens: int = Field(default=4, ge=0)
    threads: int = Field(default=2, ge=1)
    prompt_offset: int = Field(default=0, ge=0)
    prompts: str | None = None
    timeout_s: float = Field(default=600, gt=0)
    seed: int = 0

    @field_validator("batch_sizes")
    @classmethod
    def _positive(cls, sizes: list[int]) -> list[int]:
        if any(size < 1 for size in sizes):
            raise ValueError("batch sizes must be 1 or more")
        return sizes


class PlannedCell(BaseModel):
    """A cell and how to show it."""

    model_config = ConfigDict(frozen=True)

    label: str
    cell: Cell


def plan(experiment: Experiment, slot_bytes: int, total_slots: int) -> list[PlannedCell]:
    """Expand an experiment into cells for a model with ``total_slots`` experts of ``slot_bytes``.

    Raises:
        ConfigError: an unknown system or option, a malformed budget, or two equal cells.
    """
    everything = slot_bytes * total_slots
    common = _bytes(experiment.expert_budget, everything, "expert_budget")
    budgets = [_bytes(e.expert_budget, everything, "expert_budget") for e in experiment.systems if e.expert_budget]
    limit = None
    if experiment.process_overhead is not None:
        overhead = _bytes(experiment.process_overhead, everything, "process_overhead")
        limit = max([common, *budgets]) + overhead
    planned = []
    for batch, entry in itertools.product(experiment.batch_sizes, experiment.systems):
        budget = _bytes(entry.expert_budget, everything, "expert_budget") if entry.expert_budget else common
        for options in entry.variants():
            try:
                contract.create(entry.system, options)
            except ValueError as error:
                raise ConfigError(f"experiment {experiment.name!r}: {error}") from error
            cell = Cell(
                system=entry.system,
                options=options,
                model=experiment.model,
                dtype=experiment.dtype,
                batch_size=batch,
                new_tokens=experiment.new_tokens,
                prompt_offset=experiment.prompt_offset,
                expert_budget_bytes=budget,
                process_limit_bytes=limit,
                threads=experiment.threads,
                warmup_tokens=experiment.warmup_tokens,
                repetitions=experiment.repetitions,
            )
            planned.append(PlannedCell(label=entry.label_of(options), cell=cell))
    ids = [p.cell.cell_id for p in planned]
    if len(set(ids)) != len(ids):
        raise ConfigError(f"experiment {experiment.name!r} names the same cell twice: remove one")
    return planned


def _bytes(value: Bytes, everything: int, field: str) -> int:
    try:
        return parse_bytes(value, everything, f"{field}:")
    except ValueError as error:
        raise ConfigError(str(error)) from error


def from_yaml(path: Path) -> Experiment:
    """Read and validate an experiment file.

    Raises:
        ConfigError: missing, not YAML, or a field out of place.
    """
    try:
        payload = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read experiment {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    return validate(payload, str(path))


def validate(payload: Any, where: str) -> Experiment:
    """An experiment from plain data.

    Raises:
        ConfigError: naming the first field that is wrong.
    """
    try:
        return Experiment.model_validate(payload)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "file"
        raise ConfigError(f"{where}: {field}: {first['msg']}") from error


PRESETS: dict[str, dict[str, Any]] = {
    "quick": {
        "name": "quick",
        "model": "embedded-x32",
        "systems": [
            {"system": "on-demand"},
            {"system": "caching", "label": "caching"},
            {"system": "caching", "label": "caching 10%", "expert_budget": "10%"},
            {"system": "accelerate-disk"},
            {"system": "specmoe", "options": {"gamma": 5, "draft_experts": 8}},
        ],
        "batch_sizes": [1, 8, 32],
        "expert_budget": "25%",
        "rounds": 3,
    },
    "smoke": {
        "name": "smoke",
        "model": "embedded",
        "systems": [
            {"system": "on-demand"},
            {"system": "caching"},
            {"system": "accelerate-disk"},
            {"system": "specmoe", "options": {"gamma": 4, "draft_experts": 8}},
        ],
        "batch_sizes": [1, 3],
        "new_tokens": 8,
        "rounds": 2,
        "warmup_tokens": 2,
        "timeout_s": 120,
    },
}


def preset(name: str) -> Experiment:
    """A named experiment of this package.

    Raises:
        ConfigError: unknown name.
    """
    if name not in PRESETS:
        raise ConfigError(f"unknown preset {name!r}: use one of {', '.join(PRESETS)}")
    return validate(PRESETS[name], f"preset {name}")
