"""One ability of the machine, as ``specmoe-bench doctor`` shows it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """``detail`` says what was found, ``fix`` what to do if the ability is missing."""

    name: str
    ok: bool
    detail: str
    fix: str = ""

    def __str__(self) -> str:
        fix = f"\n{'':26}fix: {self.fix}" if not self.ok and self.fix else ""
        return f"{self.name:20} {'yes' if self.ok else 'no':4} {self.detail}{fix}"
