"""The automatic setting is compared with rivals of its memory, the best by median, and only within rounds."""

from __future__ import annotations

from pathlib import Path

import pytest

from reports.results.load import load
from reports.results.record import Record
from reports.results.rivals import Place, automatic_places, fastest
from tests.reports.records import record, write

AUTO = {"controller": "auto"}


def places(tmp_path: Path, *records: Record) -> list[Place]:
    return list(automatic_places(load([write(tmp_path / "results.jsonl", *records)])))


def test_the_best_rival_is_the_highest_median_and_not_the_fastest_of_each_round(tmp_path: Path) -> None:
    rounds = [record("specmoe", speed, rnd=rnd, options=AUTO) for rnd, speed in enumerate((12.0, 12.0, 12.0))]
    rounds += [record("caching", speed, rnd=rnd, label="a") for rnd, speed in enumerate((10.0, 10.0, 10.0))]
    rounds += [
        record("caching", speed, rnd=rnd, label="b", options={"placement": "lfu"})
        for rnd, speed in enumerate((5.0, 40.0, 5.0))
    ]
    (place,) = places(tmp_path, *rounds)
    assert set(fastest(place.of("caching"))["title"]) == {"a"}
    ratio = place.over(place.of("caching"))
    assert (ratio.median, ratio.n) == (pytest.approx(1.2), 3)


def test_a_rival_with_another_budget_batch_or_model_is_none(tmp_path: Path) -> None:
    others = [
        record("caching", 99.0, budget=50_000_000, label="small"),
        record("caching", 99.0, batch=2),
        record("caching", 99.0, model="another"),
    ]
    (place,) = places(tmp_path, record("specmoe", 12.0, options=AUTO), *others)
    assert place.of("caching").empty
    assert place.over(place.of("caching")).median is None
    assert (place.batch_size, place.name) == (1, "specmoe, embedded with 100 MB")


def test_settings_chosen_by_hand_and_failed_cells_have_no_place(tmp_path: Path) -> None:
    by_hand = record("specmoe", 12.0, options={"controller": "fixed"})
    lost = record("specmoe", None, status="failed", error="no", options=AUTO)
    assert places(tmp_path, by_hand, lost, record("specmoe", 1.0, label="default")) == []
