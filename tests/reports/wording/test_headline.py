"""The headline claims what the intervals support: faster, slower or no significant difference."""

from __future__ import annotations

from pathlib import Path

import pytest

from reports.results.record import Record
from reports.wording.headline import headline
from reports.wording.warnings import caveats
from tests.reports.records import BUDGET, experiment, record, summary_of


def test_headline_says_faster_with_interval_and_bytes(tmp_path: Path) -> None:
    said = headline(*summary_of(tmp_path, experiment([8, 8.2, 8.4], [4, 4, 4])))
    assert "decodes 2.05× [2.00, 2.10] as fast as on-demand at batch 4" in said.summary
    assert "moving 50 % fewer bytes per token" in said.summary


def test_headline_says_slower_and_more_bytes(tmp_path: Path) -> None:
    said = headline(*summary_of(tmp_path, experiment([2, 2.1, 2.2], [4, 4, 4], link=12e6)))
    assert "is slower than on-demand at batch 4" in said.summary
    assert "moving 20 % more bytes per token" in said.summary
    assert "as fast as" not in said.summary


def test_headline_claims_no_difference_when_the_interval_contains_one(tmp_path: Path) -> None:
    said = headline(*summary_of(tmp_path, experiment([3.8, 4.0, 4.3], [4, 4, 4])))
    assert "does not differ significantly from on-demand" in said.summary


def test_headline_of_one_round_claims_no_interval(tmp_path: Path) -> None:
    said = headline(*summary_of(tmp_path, experiment([8], [4])))
    assert "in a single round (n=1, no interval)" in said.summary


def test_headline_names_the_batches_where_it_loses(tmp_path: Path) -> None:
    slow = [record(s, v, batch=1, rnd=r) for r in range(3) for s, v in (("on-demand", 4), ("specmoe", 2))]
    said = headline(*summary_of(tmp_path, [*slow, *experiment([8, 8, 8], [4, 4, 4])]))
    assert said.summary.endswith("is faster than on-demand at batch 4, slower at batch 1.")


def test_headline_reports_a_faster_rival(tmp_path: Path) -> None:
    rival = [record("caching", 16, batch=4, rnd=rnd, budget=3 * BUDGET) for rnd in range(3)]
    said = headline(*summary_of(tmp_path, [*experiment([8, 8, 8], [4, 4, 4]), *rival]))
    assert "caching, with a budget of 300 MB: 0.50× [0.50, 0.50] (slower)" in said.sentences[0]


def test_headline_says_how_many_configurations_it_chose_from(tmp_path: Path) -> None:
    other = [record("specmoe", 5, batch=4, rnd=r, label="specmoe γ=9", options={"gamma": 9}) for r in range(2)]
    said = headline(*summary_of(tmp_path, [*experiment([8, 8], [4, 4]), *other]))
    assert "the fastest of 2 configurations" in said.summary


def test_headline_of_emulated_results_says_not_measured(tmp_path: Path) -> None:
    records = [record("on-demand", 4, kind="emulated"), record("specmoe", 8, kind="emulated")]
    assert headline(*summary_of(tmp_path, records)).summary.startswith("Emulated, not measured: ")


@pytest.mark.parametrize(
    ("records", "words"),
    [
        ([record("on-demand", 4)], "Only on-demand was measured"),
        ([record("on-demand", None, status="failed", error="lost")], "No system gave a result: failed: lost"),
        ([record("on-demand", 4), record("specmoe", None, status="failed", error="out of memory")], "out of memory"),
        ([record("specmoe", 4)], "no on-demand result"),
    ],
)
def test_headline_without_a_comparison_gives_the_reason(tmp_path: Path, records: list[Record], words: str) -> None:
    assert words in headline(*summary_of(tmp_path, records)).summary


def test_headline_gives_the_geometric_mean_over_batches(tmp_path: Path) -> None:
    records = []
    for batch, speed in ((1, 20.0), (8, 5.0)):
        for rnd in range(2):
            records += [record("on-demand", 10, batch=batch, rnd=rnd), record("specmoe", speed, batch=batch, rnd=rnd)]
    said = headline(*summary_of(tmp_path, records))
    assert "Geometric mean of the speed-ups over 2 batch sizes: 1.00× [1.00, 1.00]." in said.sentences


def test_an_ablation_is_compared_with_its_first_setting(tmp_path: Path) -> None:
    config = {"name": "a", "systems": [{"system": "specmoe", "label": "plain"}, {"system": "specmoe", "label": "new"}]}
    labels = (("new", 6, {"gamma": 2}), ("plain", 4, {}))
    records = [
        record("specmoe", speed, rnd=rnd, label=label, options=options, config=config)
        for rnd in range(2)
        for label, speed, options in labels
    ]
    said = headline(*summary_of(tmp_path, records)).summary
    assert "new decodes 1.50× [1.50, 1.50] as fast as plain" in said


def test_headline_without_specmoe_compares_what_ran_with_the_reference(tmp_path: Path) -> None:
    speeds = {"on-demand": 4, "caching": 8, "naive": 1}
    records = [record(s, v, batch=b, rnd=r) for b in (1, 8) for r in range(3) for s, v in speeds.items()]
    said = headline(*summary_of(tmp_path, records))
    assert said.summary == "Comparison of 3 systems."
    assert said.sentences[0] == "At batch 1 caching decodes 2.00× [2.00, 2.00] as fast as on-demand."
    slower = [one for one in records if one.cell.system != "caching"]
    (one, _) = headline(*summary_of(tmp_path / "slower", slower)).sentences
    assert (
        one == "At batch 1 no system is faster than on-demand; the closest, naive decodes 0.25× [0.25, 0.25] as fast "
        "as on-demand."
    )


def test_headline_claims_nothing_that_the_caveats_take_back(tmp_path: Path) -> None:
    rows = experiment([2, 3.5, 1.2], [4, 4, 4])
    summary, frame = summary_of(tmp_path, rows)
    said = headline(summary, frame).summary
    assert any("vary too much" in caveat for caveat in caveats(summary, frame))
    assert "is slower" not in said
    assert said.endswith("but the rounds vary too much to conclude, moving 50 % fewer bytes per token over the link.")


def test_headline_of_several_batches_names_those_without_a_conclusion(tmp_path: Path) -> None:
    steady = [record(s, v, batch=1, rnd=r) for r in range(3) for s, v in (("on-demand", 4), ("specmoe", 8))]
    said = headline(*summary_of(tmp_path, [*steady, *experiment([2, 3.5, 1.2], [4, 4, 4])]))
    assert said.summary.endswith(
        "is faster than on-demand at batch 1, too variable between rounds to conclude at batch 4."
    )
