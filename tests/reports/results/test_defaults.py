"""A record that names some options has the defaults that the adapter uses for the others."""

from __future__ import annotations

from baselines.engine import SpecMoEOptions
from reports.results.defaults import OPTION_DEFAULTS


def test_defaults_are_those_of_the_adapter() -> None:
    options = SpecMoEOptions(seed=0)  # with an option named, the system does not set itself
    assert options.controller == "fixed"
    assert options.draft_pool == "auto"  # which is the pinned experts
    found = {name: getattr(options, name) for name in OPTION_DEFAULTS} | {"draft_pool": "pinned"}
    assert found == OPTION_DEFAULTS


def test_without_options_and_with_the_controller_named_the_system_sets_itself() -> None:
    for options in (SpecMoEOptions(), SpecMoEOptions(controller="auto"), SpecMoEOptions(controller="auto", seed=1)):
        assert (options.controller, options.gamma, options.prefetch) == ("auto", 16, "draft")
        assert options.draft_pool == "auto"
    assert SpecMoEOptions(controller="auto", gamma=3).gamma == 3
