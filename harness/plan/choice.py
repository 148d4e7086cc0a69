"""What the command line asks for besides a file: systems, a model and batch sizes, of an experiment or without one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.plan.errors import ConfigError, suggestion
from harness.plan.experiment import Experiment, SystemEntry
from harness.plan.suite import Suite

MODEL, BATCH_SIZES = "embedded", (1,)
"""Where an experiment made from the command line alone names none."""


@dataclass(frozen=True)
class Choice:
    """The systems, the model and the batch sizes asked for; nothing asked for changes nothing.

    ``options`` are those of systems named without an experiment.
    """

    systems: tuple[str, ...] = ()
    model: str | None = None
    batch_sizes: tuple[int, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(
        cls, systems: Sequence[str], model: str | None, batch_sizes: Sequence[str], options: Mapping[str, Any]
    ) -> Choice:
        """From the words of the command line, in which commas separate values.

        Raises:
            ConfigError: a batch size that is not a positive number.
        """
        sizes = _words(batch_sizes)
        for size in sizes:
            if not size.isdecimal() or int(size) < 1:
                raise ConfigError(f"--batch {size}: give numbers from 1 on, such as --batch 1,8")
        return cls(_words(systems), model, tuple(map(int, sizes)), options)

    def words(self) -> tuple[str, ...]:
        """As typed on the command line, for a command that repeats the run."""
        given = [("--system", ",".join(self.systems)), ("--model", self.model)]
        given += [("--batch", ",".join(map(str, self.batch_sizes)))]
        given += [("--option", f"{name}={value}") for name, value in self.options.items()]
        return tuple(word for flag, value in given if value for word in (flag, value))

    def experiment(self) -> dict[str, Any]:
        """The fields of an experiment of the named systems.

        Raises:
            ConfigError: no system is named.
        """
        if not self.systems:
            raise ConfigError("nothing to run: name a preset, a suite or a YAML file, or systems with --system NAME")
        model = self.model or MODEL
        return {
            "name": f"{'-'.join(self.systems)}-{Path(model).name}",
            "title": f"{', '.join(self.systems)} on {Path(model).name}",
            "model": model,
            "systems": [{"system": name, "options": dict(self.options)} for name in self.systems],
            "batch_sizes": list(self.batch_sizes or BATCH_SIZES),
        }

    def of(self, suite: Suite) -> Suite:
        """The suite with the named systems, on the model and the batch sizes asked for.

        Experiments without any of the systems are left out.

        Raises:
            ConfigError: a system that no experiment has, or options, which belong to systems named without one.
        """
        if self.options:
            raise ConfigError(
                f"--option changes systems named with --system alone: in {suite.source!r} write "
                f"--set systems.0.options.{next(iter(self.options))}=VALUE (systems count from 0)"
            )
        known = [name for e in suite.experiments for entry in e.systems for name in _names(entry)]
        for name in self.systems:
            if name.lower() not in map(str.lower, known):
                use = ", ".join(dict.fromkeys(known))
                raise ConfigError(f"{suite.source!r} has no system {name!r}{suggestion(name, known)}: use one of {use}")
        changes: dict[str, Any] = {} if self.model is None else {"model": self.model}
        changes |= {"batch_sizes": list(self.batch_sizes)} if self.batch_sizes else {}
        chosen = [
            e.model_copy(update=changes | {"systems": found}) for e in suite.experiments if (found := self._in(e))
        ]
        return suite.model_copy(update={"experiments": chosen, "choice": self.words()})

    def _in(self, experiment: Experiment) -> list[SystemEntry]:
        wanted = {name.lower() for name in self.systems}
        return [e for e in experiment.systems if not wanted or wanted & {name.lower() for name in _names(e)}]


def _names(entry: SystemEntry) -> list[str]:
    return [entry.system, *([entry.label] if entry.label else [])]


def _words(values: Sequence[str]) -> tuple[str, ...]:
    return tuple(word.strip() for value in values for word in value.split(",") if word.strip())
