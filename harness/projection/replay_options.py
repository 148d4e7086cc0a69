"""The options of a replay: those of the recorded run, with changes that a replay can show."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.projection.traces import Trace, TraceError
from specmoe import SpecOptions

RECORDED = (
    *("gamma", "drafter", "draft_bits", "substitution", "collision", "ngram_max", "ngram_min"),
    *("prefetch_share", "kernels"),
)
"""Options that decide which tokens were drafted, or how fast: a trace holds their outcome, so no replay changes it."""


def options_of(trace: Trace, changes: Mapping[str, Any]) -> SpecOptions:
    """Options for a replay of ``trace``.

    Args:
        trace: recorded or synthetic.
        changes: options that differ from the recorded run's.

    Raises:
        OptionError: an unknown option, or a value out of range.
        TraceError: a change that a replay cannot show.
    """
    recorded = trace.meta.get("options", {})
    options = SpecOptions.of(**(recorded | dict(changes)))
    before = SpecOptions.of(**recorded)
    of_run = RECORDED if "options" in trace.meta else RECORDED[1:]  # a synthetic trace does not tell its gamma
    for name in of_run:
        if name in changes and getattr(options, name) != getattr(before, name):
            raise TraceError(
                f"--option {name}={changes[name]}: the trace holds passes of {name}={getattr(before, name)}, which a "
                f"replay repeats; record one with `specmoe-bench trace record FILE --option {name}={changes[name]}`"
            )
    return options
