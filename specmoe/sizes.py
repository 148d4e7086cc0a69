"""Sizes in bytes, as text."""

from __future__ import annotations

import re

_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def parse_bytes(value: int | str, everything: int, what: str) -> int:
    """Bytes from an int, ``"512MB"``, ``"1.5GiB"`` or ``"25%"`` of ``everything``.

    Raises:
        ValueError: malformed, an unknown unit, or not positive; the message begins with ``what``.
    """
    match = re.fullmatch(r"\s*(-?[0-9]*\.?[0-9]+)\s*(%|[a-zA-Z]*)\s*", str(value))
    if match is None:
        raise ValueError(f"{what} {value!r} is not a size: give bytes, '512MB', '1.5GiB' or '25%'")
    number, unit = float(match[1]), match[2].lower()
    if unit != "%" and unit not in _UNITS:
        raise ValueError(f"{what} {value!r}: unknown unit, use %, kB, MB, GB, KiB, MiB or GiB")
    nbytes = int(number / 100 * everything) if unit == "%" else int(number * _UNITS[unit])
    if nbytes <= 0:
        raise ValueError(f"{what} {value!r} is not positive")
    return nbytes
