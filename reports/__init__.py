"""Everything a reader gets from result files: tables, figures, pages.  Reads files only, runs no model.

The public names are imported at first use: workers that read the record schema under their memory limit load neither
pandas nor matplotlib.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reports.pages.report import ReportPaths, write_report

__all__ = ["ReportPaths", "write_report"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'reports' has no attribute {name!r}")
    from reports.pages import report

    return getattr(report, name)
