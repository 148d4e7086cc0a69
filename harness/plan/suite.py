"""A suite: experiments that run one after the other and share one report; a single experiment is a suite of one."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, field_validator

from harness.plan.errors import ConfigError, suggestion
from harness.plan.experiment import Experiment


class SuiteFile(BaseModel):
    """A suite as its YAML file describes it.

    In the file an entry of ``experiments`` is an experiment, or ``preset: NAME`` with the fields it changes; the
    mapping ``defaults`` gives fields to all of them.  ``left_out`` lists what a reader may miss, with the reason.
    ``estimated`` is false where the cells are too unlike those the estimate of the duration was fitted to.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1)
    title: str | None
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
            if name != Path(name).name or name.startswith("."):
                raise ValueError(f"experiment name {name!r} cannot be a folder's name: rename it")
            if names.count(name) > 1:
                raise ValueError(f"experiment name {name!r} is used twice: rename one")
        return experiments


class Suite(SuiteFile):
    """What a user asked to run: ``source`` ("" without one), ``assignments`` and ``choice`` are as typed.

    ``single`` marks a lone experiment.
    """

    source: str
    assignments: tuple[str, ...] = ()
    choice: tuple[str, ...] = ()
    single: bool = False

    def only(self, names: Sequence[str]) -> Suite:
        """The same suite with the named experiments; with all of them if none is named.

        Raises:
            ConfigError: a name that is not in the suite, or the suite is a single experiment.
        """
        if not names:
            return self
        if self.single:
            raise ConfigError(
                f"--only {names[0]} selects from a suite, but {self.source!r} is a single experiment: "
                "select in it with --system and --batch"
            )
        known = [experiment.name for experiment in self.experiments]
        for name in names:
            if name not in known:
                raise ConfigError(
                    f"suite {self.name!r} has no experiment {name!r}{suggestion(name, known)}: "
                    f"use one of {', '.join(known)}"
                )
        return self.model_copy(update={"experiments": [e for e in self.experiments if e.name in names]})

    def folder(self, experiment: Experiment, out: Path) -> Path:
        """Where the results of an experiment belong: in a folder of its own, unless it is the only one."""
        return out if self.single else out / experiment.name

    def command(self, experiment: Experiment) -> str:
        """The command that repeats one experiment, as a user would type it."""
        chosen = [] if self.single else ["--only", experiment.name]
        source = [self.source] if self.source else []
        changes = [word for assignment in self.assignments for word in ("--set", assignment)]
        return shlex.join(["specmoe-bench", "run", *source, *chosen, *self.choice, *changes, "--report"])
