"""The memory rate that an experiment's paced link is a share of: calibrated before, or now."""

from __future__ import annotations

from collections.abc import Callable

from harness.machine import calibrate, ceilings
from harness.plan import link_share
from harness.plan.experiment import Experiment


def memory_read_gb_s(experiment: Experiment, show: Callable[[str], None]) -> float | None:
    """The calibrated rate of this machine; None where no slow tier of the experiment is a share of it.

    A machine without a calibration is calibrated, so that later runs have the same link.

    Raises:
        ValueError: the calibration file is damaged, or too little disk space to calibrate.
        OSError: the cache folder cannot be written.
    """
    if not any(map(link_share.is_share, experiment.slow_tier)):
        return None
    known = ceilings.latest()
    if known is None or known.memory_read_gb_s is None:
        show("no calibration of this machine: measuring its rates, about half a minute (`specmoe-bench calibrate`)")
        known = calibrate.calibrate(max(experiment.threads), show=show)
        ceilings.store(known)
    return known.memory_read_gb_s
