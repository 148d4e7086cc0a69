"""Schemas of result lines: the current one, and the steps that bring older lines to it.

The number of a schema changes only when a field is renamed, removed or changes its meaning. Such a change adds one
step here, a function from the old payload to the new one. New fields with defaults need no step.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

SCHEMA = "specmoe-bench.result/3"

Payload = dict[str, Any]
Step = tuple[str, Callable[[Payload], Payload]]


def _cycle_reason(payload: Payload) -> Payload:
    """A cycle's ``why`` is called ``reason``."""
    repetitions = payload.get("repetitions")
    if not isinstance(repetitions, list):
        return payload
    return payload | {"repetitions": [_renamed_in_cycles(repetition) for repetition in repetitions]}


def _renamed_in_cycles(repetition: Any) -> Any:
    if not isinstance(repetition, dict) or not isinstance(repetition.get("cycles"), list):
        return repetition
    cycles = [
        {"reason" if name == "why" else name: value for name, value in cycle.items()}
        if isinstance(cycle, dict)
        else cycle
        for cycle in repetition["cycles"]
    ]
    return repetition | {"cycles": cycles}


def _placement_option(payload: Payload) -> Payload:
    """The option ``policy`` of the system ``caching`` is called ``placement``, as it is in ``specmoe``."""
    return _with_options(payload, _renamed_in_options)


def _with_options(payload: Payload, change: Callable[[Any], Any]) -> Payload:
    """``payload`` with every object that holds ``system`` and ``options`` changed: its cell, whose id follows, and the
    systems of its experiment."""
    changed = dict(payload)
    if isinstance(payload.get("cell"), dict):
        changed["cell"] = change(payload["cell"])
        if payload.get("cell_id") == _cell_id(payload["cell"]):
            changed["cell_id"] = _cell_id(changed["cell"])
    config = payload.get("config")
    if isinstance(config, dict) and isinstance(config.get("systems"), list):
        changed["config"] = config | {"systems": [change(entry) for entry in config["systems"]]}
    return changed


_LATER_CELL_FIELDS = {
    "disk_read_limit_bytes_s": None,
    "prompts": None,
    "prompt_tokens": None,
    "output_tokens": None,
    "request_seed": 0,
    "stored_dtype": None,
    "fills_limit": False,
}
"""Fields of a cell in schemas 1 and 2 that count in its id only when set, with their defaults."""


def _cell_id(cell: Payload) -> str:
    """The id of a complete cell of schema 1 or 2, as ``Cell.cell_id`` computes it."""
    values = cell | ({"stored_dtype": None} if cell.get("stored_dtype") == cell.get("dtype") else {})
    counted = {k: v for k, v in values.items() if k not in _LATER_CELL_FIELDS or v != _LATER_CELL_FIELDS[k]}
    return hashlib.sha256(json.dumps(counted, sort_keys=True).encode()).hexdigest()[:12]


def _renamed_in_options(entry: Any) -> Any:
    """An object with ``system`` and ``options``: a cell, or an entry of an experiment's systems."""
    if not isinstance(entry, dict) or entry.get("system") != "caching" or not isinstance(entry.get("options"), dict):
        return entry
    options = {"placement" if name == "policy" else name: value for name, value in entry["options"].items()}
    return entry | {"options": options}


def _limit_reason(payload: Payload) -> Payload:
    """A limit's ``why_not`` is called ``reason``."""
    limit = payload.get("limit")
    if not isinstance(limit, dict):
        return payload
    return payload | {"limit": {"reason" if name == "why_not" else name: value for name, value in limit.items()}}


_EARLIER_TITLES = {
    "Batch 1 to 256 on 64 experts a layer": "Batch 1 to 256 on 64 experts per layer",
    "How far the draft goes (N = 8)": "Draft length gamma (N = 8)",
    "How many experts draft (gamma 10)": "Number of draft experts N (gamma 10)",
    "SpecMoE beside on-demand loading, caching and accelerate": "SpecMoE compared with on-demand loading, caching and "
    "accelerate",
    "The same disk, held to 400 MB/s by the kernel": "The same disk, throttled to 400 MB/s by the kernel",
    "What the use counts look at, and how sets change (N = 8, gamma 5)": "What expert usage is counted, and how draft "
    "sets change (N = 8, gamma 5)",
    "Who stands in for an expert that cannot draft (N = 4, gamma 5)": "Which expert substitutes for one that is not in "
    "the draft set (N = 4, gamma 5)",
}
"""Titles of experiments that have since been reworded, with today's."""


def _title(payload: Payload) -> Payload:
    """An experiment is called as it is today."""
    config = payload.get("config")
    if not isinstance(config, dict) or config.get("title") not in _EARLIER_TITLES:
        return payload
    return payload | {"config": config | {"title": _EARLIER_TITLES[config["title"]]}}


def _first_to_second(payload: Payload) -> Payload:
    return _title(_limit_reason(_placement_option(_cycle_reason(payload))))


def _named_defaults(entry: Any) -> Any:
    """``specmoe`` sets itself where no option is named or only the controller is; before, these meant fixed values."""
    if not isinstance(entry, dict) or entry.get("system") != "specmoe" or not isinstance(entry.get("options"), dict):
        return entry
    options = entry["options"]
    if not options:
        return entry | {"options": {"draft_pool": "pinned"}}
    if options.get("controller") == "auto":
        return entry | {"options": {"draft_pool": "pinned", "gamma": 5, "prefetch": "none"} | options}
    return entry


def _second_to_third(payload: Payload) -> Payload:
    return _with_options(payload, _named_defaults)


STEPS: Mapping[str, Step] = {
    "specmoe-bench.result/1": ("specmoe-bench.result/2", _first_to_second),
    "specmoe-bench.result/2": ("specmoe-bench.result/3", _second_to_third),
}


def upgrade(payload: Any, steps: Mapping[str, Step] = STEPS, target: str = SCHEMA) -> Any:
    """``payload`` in schema ``target``, by as many steps as needed; unchanged if it names no schema.

    Raises:
        ValueError: no steps lead from its schema to ``target``; the message names the fix.
    """
    if not isinstance(payload, dict) or "schema_version" not in payload:
        return payload
    seen: set[str] = set()
    while (version := payload["schema_version"]) != target:
        if not isinstance(version, str) or version not in steps or version in seen:
            raise ValueError(
                f"has schema {version!r}, this version reads {target}: measure again, or use the version that wrote it"
            )
        seen.add(version)
        after, step = steps[version]
        payload = step(dict(payload)) | {"schema_version": after}
    return payload
