"""Lines of a result file: one JSON object each, sealed with a checksum, brought to the current schema.

A sealed line ends in ``"checksum":"<16 hex digits>"}``: the xxh3-64 of the same object without that member,
byte for byte. Lines of older releases have none and are accepted without it.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import xxhash

from reports.results.migrate import upgrade

_SEAL = re.compile(r',"checksum":"([0-9a-f]{16})"\}$')


class DamagedLine(ValueError):
    """A line that was cut off by a kill or altered since it was written; never a result."""


def seal(body: str) -> str:
    """``body`` (the text of a JSON object with members) with a checksum that detects any later change."""
    return f'{body[:-1]},"checksum":"{xxhash.xxh3_64_hexdigest(body.encode())}"}}'


def unseal(line: str) -> Any:
    """The object of a line.

    Raises:
        DamagedLine: not JSON, or the checksum differs.
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
    return payload


def read_lines(path: Path, stacklevel: int = 3) -> Iterator[tuple[int, Any]]:
    """(line number, object of the current schema) of every intact line; warns about damaged ones.

    Raises:
        OSError: the file cannot be read.
        ValueError: a line of a schema unknown to this release.
    """
    for number, line in enumerate(path.read_text(encoding="utf-8-sig", errors="replace").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            payload = unseal(line.rstrip("\r"))
        except DamagedLine as error:
            warnings.warn(f"{path}:{number}: damaged line skipped ({error})", stacklevel=stacklevel)
            continue
        try:
            yield number, upgrade(payload)
        except ValueError as error:
            raise ValueError(f"{path}:{number} {error}") from error
