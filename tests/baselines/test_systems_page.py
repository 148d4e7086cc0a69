"""docs/systems.md lists every system with the summary, grain and reason that its card and class state."""

from __future__ import annotations

from baselines import registry
from tests import ROOT

ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in (ROOT / "docs" / "systems.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("| `")
]
PAGE = {name.strip(" `"): rest for name, *rest in ROWS}


def test_every_system_of_this_package_has_one_row() -> None:
    own = [name for name, system in registry.systems().items() if system.__module__.startswith("baselines.")]
    assert sorted(name.strip(" `") for name, *_ in ROWS) == sorted(own)


def test_rows_state_what_the_cards_and_classes_state() -> None:
    for name, rest in PAGE.items():
        system = registry.systems()[name]
        if hasattr(system, "reason"):
            assert rest == [system.reason]
        else:
            assert rest[:2] == [system.card.summary, system.card.grain]
