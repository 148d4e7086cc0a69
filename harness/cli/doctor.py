"""``specmoe-bench doctor``."""

from __future__ import annotations


def command() -> None:
    """Show what this machine can enforce and measure.

    For everything that is missing it says how to fix it.
    """
    from harness.machine import doctor, environment

    for key, value in environment.capture().items():
        print(f"{key:20} {value}")
    print()
    for check in doctor.examine():
        print(check)
