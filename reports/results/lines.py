"""Lines of a result file: one JSON object each, sealed with a checksum, brought to the current schema.

A sealed line ends in ``"checksum":"<16 hex digits>"}``: the xxh3-64 of the same object without that member,
byte for byte. Lines of older releases have none and are accepted without it.
"""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import xxhash

from reports.results.migrate import upgrade

_NOT_FINITE = re.compile(r"NaN|Infinity|[eE]\+?\d{3}")  # where a line has none of these, all its numbers are finite
_SEAL = re.compile(r',"checksum":"([0-9a-f]{16})"\}$')


class DamagedLine(ValueError):
    """A line that was cut off by a kill or altered since it was written; never a result."""


class NotFinite(ValueError):
    """An intact line with a number that no record can hold: NaN or infinity."""


def seal(body: str) -> str:
    """``body`` (the text of a JSON object with members) with a checksum that detects any later change."""
    return f'{body[:-1]},"checksum":"{xxhash.xxh3_64_hexdigest(body.encode())}"}}'


def unseal(line: str) -> Any:
    """The object of a line.

    Raises:
        DamagedLine: not JSON, or the checksum differs.
        NotFinite: a number in it is not finite.
    """
    body = line
    if found := _SEAL.search(line):
        body = line[: found.start()] + "}"
        if xxhash.xxh3_64_hexdigest(body.encode(errors="replace")) != found[1]:
            raise DamagedLine("checksum differs")
    try:
        payload = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise DamagedLine(str(error)) from error
    if isinstance(payload, dict) and "checksum" in payload:
        raise DamagedLine("checksum is not at the line's end")
    if _NOT_FINITE.search(body) and (found_at := _not_finite(payload)):
        raise NotFinite(found_at)
    return payload


def _not_finite(value: Any, place: str = "") -> str | None:
    """The first number that is not finite, with its place, such as ``metrics.hit_rate is nan``."""
    if isinstance(value, float):
        return None if math.isfinite(value) else f"{place} is {value}"
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    named = ((one, f"{place}.{name}".removeprefix(".")) for name, one in inner)
    return next((found for one, where in named if (found := _not_finite(one, where))), None)


def read_lines(path: Path, stacklevel: int = 3) -> Iterator[tuple[int, Any]]:
    """(line number, object of the current schema) of every intact line; warns once about damaged ones, at the end.

    Raises:
        OSError: the file cannot be read.
        ValueError: a line of a schema unknown to this release, or with a number that is not finite.
    """
    damaged: list[str] = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig", errors="replace").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            payload = unseal(line.rstrip("\r"))
        except DamagedLine as error:
            damaged.append(f"{path}:{number}: damaged line skipped ({error})")
            continue
        except NotFinite as error:
            raise ValueError(
                f"{path}:{number}: {error}, not a finite number: remove that line or name another file"
            ) from error
        try:
            yield number, upgrade(payload)
        except ValueError as error:
            raise ValueError(f"{path}:{number} {error}") from error
    if damaged:
        more = f", and {len(damaged) - 1} more" if len(damaged) > 1 else ""
        warnings.warn(damaged[0] + more, stacklevel=stacklevel)
