"""Suites: their estimates count the cells that are planned, and single experiments can be chosen from them."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.plan import estimate
from harness.plan.errors import ConfigError
from harness.plan.experiment import plan
from harness.plan.loader import load
from tests.harness.experiments import MINIMAL, SIZES, suite_file


def test_the_full_suite_is_estimated_under_three_hours() -> None:
    full = load("full")
    assert full.estimated
    assert estimate.estimate_s(full) < 3 * 3600
    assert "on 2 cores" in estimate.announcement(full)


def test_the_paper_suite_says_what_it_leaves_out_and_runs_on_the_papers_tier() -> None:
    paper = load("paper")
    assert "encoder-decoder" in estimate.announcement(paper)
    assert "tier" not in estimate.announcement(paper)
    assert {(*e.device, *e.slow_tier) for e in paper.experiments} == {(None, None)}, "a GPU and host memory by default"
    assert "about" not in estimate.extent(paper), "nothing is known of such machines"


def test_the_papers_settings_run_on_a_paced_link_in_under_forty_minutes() -> None:
    ratio = load("paper-ratio")
    assert {(*e.device, *e.slow_tier) for e in ratio.experiments} == {("cpu", "paced:memory/50")}
    assert "mulated" in ratio.about
    assert estimate.estimate_s(ratio) < 40 * 60


def test_an_estimate_counts_the_cells_that_are_planned(tmp_path: Path) -> None:
    swept = MINIMAL | {"batch_sizes": [1, 2], "new_tokens": [4, 8], "expert_budget": ["20%", "50%"]}
    swept["systems"] = [
        {"system": "specmoe", "options": {"gamma": [1, 2, 3]}},
        {"system": "on-demand", "expert_budget": "9%"},
    ]
    (experiment,) = load(str(suite_file(tmp_path / "s.yaml", swept))).experiments
    assert len(estimate.cells(experiment)) == len(plan(experiment, SIZES)) == 28


def test_one_experiment_of_a_suite_can_be_chosen(tmp_path: Path) -> None:
    suite = load(str(suite_file(tmp_path / "s.yaml", MINIMAL | {"name": "a"}, MINIMAL | {"name": "b"})))
    assert [e.name for e in suite.only(["b"]).experiments] == ["b"]
    assert suite.only([]) == suite
    with pytest.raises(ConfigError, match="use one of a, b"):
        suite.only(["c"])
