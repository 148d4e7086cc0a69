"""docs/on-a-gpu.md names every system that computes on a GPU, where it was run and what it was only written for."""

from __future__ import annotations

import re

from baselines import registry
from tests import ROOT

PAGE = (ROOT / "docs" / "on-a-gpu.md").read_text(encoding="utf-8")
ROWS = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in PAGE.splitlines() if line.startswith("| `")]
CARDS = {
    name: system.card
    for name, system in registry.systems().items()
    if system.__module__.startswith("baselines.") and not system.card.external and system.card.run_on
}


def test_every_system_that_computes_on_a_gpu_has_a_row() -> None:
    named = [name for names, *_ in ROWS for name in re.findall(r"`([\w-]+)`", names)]
    assert sorted(named) == sorted(name for name, card in CARDS.items() if "cuda" in card.devices)


def test_rows_say_where_a_system_was_run_as_its_card_does() -> None:
    for names, *_, run_on, written_for in ROWS:
        for name in re.findall(r"`([\w-]+)`", names):
            assert (run_on, written_for.strip(" |")) == (
                ", ".join(CARDS[name].run_on),
                ", ".join(CARDS[name].only_written_for),
            )


def test_slow_tiers_of_a_row_are_those_of_the_card() -> None:
    for names, _, rests, *_ in ROWS:
        if rests != "nowhere":
            for name in re.findall(r"`([\w-]+)`", names):
                named = set(re.findall(r"`(disk|host|paced)`", rests))
                expected = set(CARDS[name].slow_tiers) - ({"disk"} if name == "accelerate-cpu" else set())
                assert named == expected, name
