"""``key=value`` from the command line (``--set`` and ``--option``), applied to plain data before it is validated."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

Flag = Literal["--set", "--option"]
_EXAMPLES: dict[Flag, str] = {"--set": "rounds=5", "--option": "substitution=drop"}


class OverrideError(ValueError):
    """An assignment that cannot be applied; the message names it."""


def apply(payload: Any, assignments: Sequence[str], flag: Flag = "--set") -> Any:
    """A copy of ``payload`` with every ``key=value`` applied in order.

    A key is a dotted path of names and list positions (``systems.3.options.gamma``).  A value is YAML, read as in an
    experiment file: ``25%`` is text and ``[2, 4]`` a list.  Names that are missing are added; whether they exist is
    decided by validation.

    Raises:
        OverrideError: no ``=``, a value that is not YAML, or a list position that does not exist.
    """
    if not assignments:
        return payload
    config = _config(payload, assignments[0], flag)
    for assignment in assignments:
        _assign(config, assignment, flag)
    return OmegaConf.to_container(config, resolve=False)


def options(assignments: Sequence[str]) -> dict[str, Any]:
    """The values of ``--option NAME=VALUE``.

    Raises:
        OverrideError: as ``apply``.
    """
    applied: dict[str, Any] = apply({}, assignments, "--option")
    return applied


def path_of(assignment: str) -> list[str]:
    """The names and positions of an assignment's key."""
    return [part for part in re.split(r"[.\[\]]+", assignment.partition("=")[0].strip()) if part]


def _config(payload: Any, assignment: str, flag: Flag) -> Any:
    if not isinstance(payload, dict | list):
        raise OverrideError(f"{flag} {assignment!r}: there are no fields to change")
    try:
        return OmegaConf.create(payload, flags={"allow_objects": True})
    except (OmegaConfBaseException, ValueError) as error:
        raise OverrideError(f"{flag} {assignment!r} cannot be applied: {_first_line(error)}") from error


def _assign(config: Any, assignment: str, flag: Flag) -> None:
    key, equals, text = assignment.partition("=")
    if not equals or not key.strip():
        raise OverrideError(f"{flag} {assignment!r}: write it as key=value, such as {_EXAMPLES[flag]}")
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise OverrideError(f"{flag} {assignment!r}: the value is not YAML; quote it") from error
    try:
        OmegaConf.update(config, key.strip(), value, merge=False, force_add=True)
    except IndexError as error:
        raise OverrideError(f"{flag} {assignment!r}: the list has no such position (they count from 0)") from error
    except (OmegaConfBaseException, TypeError, ValueError, RecursionError) as error:
        raise OverrideError(f"{flag} {assignment!r}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
