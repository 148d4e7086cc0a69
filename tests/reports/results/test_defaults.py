"""A record that does not name an option has the default that the adapter uses."""

from __future__ import annotations

from baselines.engine import SpecMoEOptions
from reports.results.defaults import OPTION_DEFAULTS


def test_defaults_are_those_of_the_adapter() -> None:
    options = SpecMoEOptions()
    assert {name: getattr(options, name) for name in OPTION_DEFAULTS} == OPTION_DEFAULTS
