"""Errors in experiments and suites, in one line each: the place, the cause and the likely fix."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence

from pydantic import ValidationError

Assigned = Mapping[str, Sequence[str]]
"""Assignments from the command line, each with the path of its key."""


class ConfigError(ValueError):
    """An experiment or suite that cannot be run; the message names the field and the fix."""


def config_error(error: ValidationError, where: str, known: Iterable[str], assigned: Assigned) -> ConfigError:
    """The first error as one line.

    Args:
        error: what validation found.
        where: the file, or what else was validated.
        known: names of fields, to suggest one for a name that does not exist.
        assigned: where one of these set the field, the message names it instead of ``where``.
    """
    first = error.errors()[0]
    place = [str(part) for part in first["loc"]]
    message = first["msg"]
    if first["type"] == "extra_forbidden":
        message = "no such field" + suggestion(place[-1], known)
    source = next((f"--set {text!r}" for text, path in assigned.items() if _same_field(path, place)), where)
    return ConfigError(f"{source}: {'.'.join(place) or 'file'}: {message}")


def suggestion(name: str, known: Iterable[str]) -> str:
    """``, did you mean 'rounds'?`` for a name that is almost known, else nothing."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f", did you mean {close[0]!r}?" if close else ""


def _same_field(path: Sequence[str], place: Sequence[str]) -> bool:
    """Whether one of the two lies within the other."""
    shared = min(len(path), len(place))
    return shared > 0 and list(path[:shared]) == list(place[:shared])
