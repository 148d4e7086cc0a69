"""``key=value`` changes nested fields and list items, sweeps lists, and a bad one is named in one line."""

from __future__ import annotations

import pytest

from harness.plan import overrides
from harness.plan.experiment import plan, validate
from harness.plan.overrides import OverrideError
from tests.harness.experiments import MINIMAL, SIZES

TWO = {"systems": [{"system": "on-demand"}, {"system": "specmoe", "options": {"gamma": 5}}], "title": None}


@pytest.mark.parametrize(
    ("assignment", "place", "value"),
    [
        ("rounds=7", ["rounds"], 7),
        ("systems.1.options.gamma=2", ["systems", 1, "options", "gamma"], 2),
        ("systems[1].options.gamma=2", ["systems", 1, "options", "gamma"], 2),
        ("systems.-1.options.gamma=[2, 4]", ["systems", 1, "options", "gamma"], [2, 4]),
        ("systems.0.options.placement=lru", ["systems", 0, "options", "placement"], "lru"),
        ("systems.1.options={draft_experts: 3}", ["systems", 1, "options"], {"draft_experts": 3}),
        ("title=a=b", ["title"], "a=b"),
        ("prompts=", ["prompts"], None),
        ("expert_budget=25%", ["expert_budget"], "25%"),
        ("expert_budget=[10%, 20%]", ["expert_budget"], ["10%", "20%"]),
        ("prompts='${HOME}/p.jsonl'", ["prompts"], "${HOME}/p.jsonl"),
    ],
)
def test_an_assignment_sets_its_field_and_nothing_else(assignment: str, place: list, value: object) -> None:
    changed = overrides.apply(TWO, [assignment])
    found = changed
    for key in place:
        found = found[key]
    assert found == value
    assert overrides.apply(TWO, []) == TWO, "the original is left alone"
    assert {k: v for k, v in changed.items() if k != place[0]} == {k: v for k, v in TWO.items() if k != place[0]}


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("rounds", "write it as key=value"),
        ("=3", "write it as key=value"),
        ("rounds=[", "the value is not YAML"),
        ("systems.5.system=x", "the list has no such position"),
        ("systems.first.system=x", "not an int"),
        ("title=${", "--set 'title=\\${'"),
    ],
)
def test_an_assignment_that_cannot_be_applied_is_named(assignment: str, message: str) -> None:
    with pytest.raises(OverrideError, match=message) as error:
        overrides.apply(TWO, [assignment])
    assert repr(assignment) in str(error.value)
    assert "\n" not in str(error.value)


def test_assignments_sweep() -> None:
    changes = ["rounds=7", "systems.0.options.gamma=[2, 4]", "new_tokens=[8, 16]", "expert_budget=[10%, 20%]"]
    payload = MINIMAL | {"systems": [{"system": "specmoe"}]}
    experiment = validate(overrides.apply(payload, changes), "test")
    planned = plan(experiment, SIZES)
    assert experiment.rounds == 7
    assert len(planned) == len({p.cell.cell_id for p in planned}) == 8
    assert {p.cell.process_limit_bytes for p in planned} == {900_020_000}, "the limit is the same for all"
    assert "options" not in payload["systems"][0], "the original is left alone"


def test_options_are_read_the_same_way() -> None:
    assert overrides.options(["gamma=3", "substitution=drop"]) == {"gamma": 3, "substitution": "drop"}
    with pytest.raises(OverrideError, match="--option 'gamma'"):
        overrides.options(["gamma"])
