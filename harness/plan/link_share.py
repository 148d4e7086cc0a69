"""A paced link as a share of this machine's memory rate: ``paced:memory/50`` has a fiftieth of it.

The paper's H100 reads its memory some fifty times as fast as PCIe fills it (3.35 TB/s and 64 GB/s).  A link of the same
ratio beside another machine's memory makes a transfer cost as many reads of resident weights as it does there.
"""

from __future__ import annotations

import re

from harness.plan.errors import ConfigError
from specmoe.offload.slow_tier import SlowTier

_SHARE = re.compile(r"paced:\s*memory\s*/\s*([0-9]+(?:\.[0-9]+)?)(\s*\+.*)?")
_PREFIX, _STATED = "paced:memory/", "paced:1GB/s"
_EXAMPLE = f"{_PREFIX}50"


def canonical(text: str) -> str:
    """One text for equal slow tiers: those of ``SlowTier.of``, and a share such as ``paced:memory/50``.

    Raises:
        ValueError: an unknown tier, or a share of nothing.
    """
    found = _SHARE.fullmatch(text.strip())
    if found is None:
        try:
            return str(SlowTier.of(text))
        except ValueError as error:
            raise ValueError(f"{error}, or at a share of the memory rate: {_EXAMPLE}") from error
    if float(found[1]) < 1:
        raise ValueError(f"slow tier {text!r} is faster than memory: divide by 1 or more, such as {_EXAMPLE}")
    try:
        stated = SlowTier.of(f"{_STATED}{found[2] or ''}")
    except ValueError as error:
        raise ValueError(f"slow tier {text!r}: {found[2]!r} is no latency, write it as in {_EXAMPLE}+10us") from error
    return f"{_PREFIX}{float(found[1]):g}{str(stated).removeprefix(_STATED)}"


def is_share(text: str | None) -> bool:
    """Whether a canonical slow tier is a share of the memory rate."""
    return text is not None and text.startswith(_PREFIX)


def resolved(text: str, memory_read_gb_s: float | None) -> str:
    """A canonical slow tier with its rate stated, to two digits; the share is of the calibrated ``memory_read_gb_s``.

    Raises:
        ConfigError: a share, and no calibrated rate.
    """
    if not is_share(text):
        return text
    if memory_read_gb_s is None:
        raise ConfigError(
            f"slow_tier {text} is a share of this machine's memory rate, which is not calibrated: run "
            "`specmoe-bench calibrate` first, or state a rate, such as paced:0.4GB/s"
        )
    divisor, _, latency = text.removeprefix(_PREFIX).partition("+")
    rate_gb_s = float(f"{memory_read_gb_s / float(divisor):.2g}")
    return str(SlowTier.of(f"paced:{rate_gb_s:f}GB/s{f'+{latency}' if latency else ''}"))
