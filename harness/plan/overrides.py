"""``--set key=value``: changes of an experiment on the command line, before it is validated."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import yaml


class OverrideError(ValueError):
    """A ``--set`` that cannot be applied."""


def apply(payload: Any, assignments: Sequence[str]) -> Any:
    """``payload`` with every ``path=value`` applied to a copy.

    A path is made of names and list positions joined by dots (``systems.0.options.gamma``); a value is YAML, so
    ``[2, 4, 8]`` is a list to sweep.  Missing names are added: validation says whether they may be there.

    Raises:
        OverrideError: no ``=``, a path that leads nowhere, or a value that is not YAML.
    """
    changed = copy.deepcopy(payload)
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals or not path.strip():
            raise OverrideError(f"--set {assignment!r}: write it as key=value, such as rounds=5")
        try:
            value = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise OverrideError(f"--set {assignment!r}: the value is not YAML; quote it") from error
        _set(changed, path.strip().split("."), value, assignment)
    return changed


def _set(node: Any, path: list[str], value: Any, assignment: str) -> None:
    *parents, last = path
    for name in parents:
        node = node.setdefault(name, {}) if isinstance(node, dict) else node[_position(node, name, assignment)]
    if isinstance(node, dict):
        node[last] = value
    else:
        node[_position(node, last, assignment)] = value


def _position(node: Any, name: str, assignment: str) -> int:
    if not isinstance(node, list):
        raise OverrideError(f"--set {assignment!r}: {name!r} lies in a plain value, which has no parts")
    if not name.isascii() or not name.isdigit() or int(name) >= len(node):
        raise OverrideError(f"--set {assignment!r}: {name!r} is no position in a list of {len(node)} (count from 0)")
    return int(name)
