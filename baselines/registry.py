"""The registry of systems: those of this package's files, and those of other packages' entry points.

A file of this package registers its system with ``@register``; another package does the same in a module that its entry
point ``specmoe_bench.systems`` names.
"""

from __future__ import annotations

import importlib
import pkgutil
import warnings
from collections.abc import Callable
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from pydantic import ValidationError

from baselines.contract import System

_SYSTEMS: dict[str, Callable[[Any], System]] = {}
_ENTRY_POINTS = "specmoe_bench.systems"


def register(system: Any) -> Any:
    """Class decorator: register a system under its card's name.

    Raises:
        ValueError: another system has this name.
    """
    name = system.card.name
    if name in _SYSTEMS and _SYSTEMS[name] is not system:
        raise ValueError(f"two systems are called {name!r}: rename one card")
    _SYSTEMS[name] = system
    return system


def systems() -> dict[str, Any]:
    """All system classes by name: those of this package, then those of other packages' entry points."""
    _discover()
    return dict(sorted(_SYSTEMS.items()))


@cache
def _discover() -> None:
    """Import what registers systems, once per process: looking for entry points reads every installed package."""
    import baselines

    for module in pkgutil.iter_modules(baselines.__path__):
        importlib.import_module(f"baselines.{module.name}")
    for entry in entry_points(group=_ENTRY_POINTS):
        try:
            entry.load()
        except Exception as error:  # a faulty package must not hide the other systems
            warnings.warn(f"system {entry.name!r} of {entry.value} cannot be loaded: {error!r}", stacklevel=3)


def create(name: str, options: dict[str, Any]) -> System:
    """A system with validated options.

    Raises:
        ValueError: unknown system or option; the message lists the known ones.
    """
    known = systems()
    if name not in known:
        raise ValueError(f"unknown system {name!r}: use one of {', '.join(known)}")
    cls = known[name]
    try:
        validated = cls.Options(**options)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "options"
        problem = "no such option" if first["type"] == "extra_forbidden" else first["msg"]
        allowed = ", ".join(cls.Options.model_fields) or "none"
        raise ValueError(f"system {name!r}, option {where}: {problem} (options: {allowed})") from error
    system: System = cls(validated)
    return system
