"""Finds every figure: each module of this package with a tuple ``SPECS`` declares some."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

import reports.figures
from reports.figures.spec import GROUPS, Spec


def all_specs() -> list[Spec]:
    """The declared figures in page order.

    Raises:
        ValueError: two figures of one id.
    """
    modules = [import_module(f"reports.figures.{found.name}") for found in iter_modules(reports.figures.__path__)]
    specs: list[Spec] = [spec for module in modules for spec in getattr(module, "SPECS", ())]
    ids = [spec.id for spec in specs]
    if repeated := sorted({id for id in ids if ids.count(id) > 1}):
        raise ValueError(f"figure ids are declared twice: {', '.join(repeated)}: rename one of each")
    groups = list(GROUPS)
    return sorted(specs, key=lambda spec: (groups.index(spec.place[0]), spec.place[1], spec.id))
