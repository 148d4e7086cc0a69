"""A suite: several experiments in one YAML, run one after the other into one folder, with one page over all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from harness.plan import experiment as config
from harness.plan import overrides
from harness.plan.experiment import ConfigError, Experiment, expand

_SUITES = Path(__file__).parent / "suites"
CELL_S, SEQUENCE_S = 4.5, 0.22
"""Seconds of a cell, and more for each sequence of its batch: fitted to the committed records (2 cores, 32 to 64
tokens, the whole process with loading and warm-up); a mean of about 9 s at batch 1 to 32."""
THROTTLED = 4.0  # a cell behind a throttled disk takes about so many times as long
MODEL_S = 60.0  # building a model, its store and its references


class Suite(BaseModel):
    """Experiments that belong on one page.

    In the file an entry of ``experiments`` is an experiment, or ``preset: NAME`` with the fields it changes;
    ``defaults`` holds for entries that say nothing else.  ``left_out`` tells what a reader may miss, and why.
    ``estimated`` is false where cells are too unlike those the estimate was fitted to.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1)
    title: str
    about: str = ""
    left_out: list[str] = Field(default_factory=list)
    estimated: bool = True
    experiments: list[Experiment] = Field(min_length=1)

    @field_validator("experiments")
    @classmethod
    def _folders(cls, experiments: list[Experiment]) -> list[Experiment]:
        """Each experiment has a folder of its name."""
        names = [experiment.name for experiment in experiments]
        for name in names:
            if name != Path(name).name or name.startswith(".") or names.count(name) > 1:
                raise ValueError(f"experiment name {name!r} is taken twice or no folder's name: rename it")
        return experiments

    def only(self, names: Sequence[str]) -> Suite:
        """The same suite with some of its experiments; with all of them if none is named.

        Raises:
            ConfigError: a name that is not in the suite.
        """
        known = [experiment.name for experiment in self.experiments]
        for name in names:
            if name not in known:
                raise ConfigError(f"suite {self.name!r} has no experiment {name!r}: use one of {', '.join(known)}")
        chosen = [e for e in self.experiments if e.name in names] if names else self.experiments
        return self.model_copy(update={"experiments": chosen})


def names() -> list[str]:
    """Suites that come with this package."""
    return sorted(path.stem for path in _SUITES.glob("*.yaml"))


def lines() -> list[str]:
    """A line for each suite that comes with this package, with its estimate."""
    found = [read(_SUITES / f"{name}.yaml") for name in names()]
    return [f"{s.name:22} {s.title}; {announce(s).splitlines()[0].partition(': ')[2]}" for s in found]


def find(named: str, assignments: Sequence[str] = ()) -> Suite | None:
    """The suite of a name or YAML file; None if it is an experiment's or nobody's.

    Raises:
        ConfigError: a suite that cannot be run.
    """
    if config.is_file(named):
        return read(Path(named), assignments) if _is_suite(Path(named)) else None
    packaged = _SUITES / f"{named}.yaml"
    return read(packaged, assignments) if named and packaged.is_file() else None


def _is_suite(path: Path) -> bool:
    try:
        payload = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, ValueError, RecursionError):
        return False  # as an experiment it gets a better message
    return isinstance(payload, dict) and "experiments" in payload


def read(path: Path, assignments: Sequence[str] = ()) -> Suite:
    """Read and validate a suite; ``assignments`` are applied to the file's text first.

    Raises:
        ConfigError: naming the experiment and field that is wrong.
    """
    payload = overrides.apply(yaml.safe_load(path.read_text(encoding="utf-8")), assignments)
    entries, defaults = payload.get("experiments"), payload.pop("defaults", None) or {}
    if not isinstance(entries, list) or not isinstance(defaults, dict):
        raise ConfigError(f"{path}: 'experiments' must be a list and 'defaults' a mapping")
    experiments = [_entry(entry, defaults, f"{path}: experiments.{i}") for i, entry in enumerate(entries)]
    try:
        return Suite.model_validate(payload | {"experiments": experiments})
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def _entry(entry: Any, defaults: dict[str, Any], where: str) -> Experiment:
    if not isinstance(entry, dict):
        raise ConfigError(f"{where}: {entry!r} is no experiment: give its fields, or 'preset: NAME'")
    fields = dict(entry)
    base = {}
    if "preset" in fields:
        base = config.preset(str(fields.pop("preset"))).model_dump(mode="json", exclude_unset=True)
    return config.validate(defaults | base | fields, where)


def cells(experiment: Experiment) -> list[tuple[int, bool]]:
    """(batch size, whether the disk is throttled) of every cell of one round, without opening the model."""
    return [
        (settings["batch_sizes"], settings["disk_read_limit"] is not None)
        for entry, settings in expand(experiment)
        for _ in entry.variants()
    ]


def estimate_s(suite: Suite) -> float:
    """Seconds a suite takes on 2 cores from nothing, by the figures above."""
    total = MODEL_S * len({(e.model, e.dtype) for e in suite.experiments})
    for experiment in suite.experiments:
        for batch, throttled in cells(experiment):
            once = CELL_S + SEQUENCE_S * batch
            total += experiment.rounds * once * (THROTTLED if throttled else 1.0)
    return total


def announce(suite: Suite) -> str:
    """What is about to be run, and how long that takes."""
    count = sum(len(cells(e)) * e.rounds for e in suite.experiments)
    said = f"suite {suite.name}: {len(suite.experiments)} experiments, {count} cells"
    if suite.estimated:
        minutes = math.ceil(estimate_s(suite) / 60)
        hours = f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min"
        said += f", about {hours} on 2 cores ({CELL_S} s a cell and {SEQUENCE_S} s a sequence; finished cells are kept)"
    return "\n".join([said, *(f"left out: {text}" for text in suite.left_out)])
