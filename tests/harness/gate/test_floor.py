"""The floor: the automatic setting against its best rival on our engine; fails where all of the interval is below."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.cli import main as cli
from reports.results.record import Record
from tests.reports.records import record, write

RIVAL = (10.0, 10.1, 9.9, 10.0)


def rounds(ours: tuple[float, ...], rival: tuple[float, ...] = RIVAL) -> list[Record]:
    found = [record("specmoe", speed, rnd=n, options={"controller": "auto"}) for n, speed in enumerate(ours)]
    found += [record("caching", speed, rnd=n) for n, speed in enumerate(rival)]
    return [*found, *(record("on-demand", 3.0, rnd=n) for n in range(len(rival)))]


def check(tmp_path: Path, records: list[Record], floor: str = "0.97") -> int:
    file = write(tmp_path / "results.jsonl", *records)
    return cli.main(["check", "--floor", floor, "--results", str(file)])


@pytest.mark.parametrize(
    ("ours", "code"),
    [
        ((12.0, 12.1, 11.9, 12.0), 0),
        ((9.8, 9.9, 9.7, 9.8), 0),
        ((9.0, 9.1, 8.9, 9.0), 1),
        ((9.4, 9.4, 9.6, 9.95), 3),
        ((12.0, 12.0), 3),
    ],
    ids=["faster", "within the floor", "below", "the interval contains it", "two rounds"],
)
def test_the_verdict_follows_the_median_and_the_interval(tmp_path: Path, ours: tuple[float, ...], code: int) -> None:
    assert check(tmp_path, rounds(ours)) == code


def test_it_names_the_cell_and_the_rival(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(tmp_path, rounds((9.0, 9.0, 9.0, 9.0))) == 1
    first, last = capsys.readouterr().out.strip().splitlines()
    assert first.startswith("regression: specmoe, embedded with 100 MB, against caching, batch 1: speed 0.90×")
    assert first.endswith("(0.90 of the rival's speed, 0.97 is the floor)")
    assert last.startswith("regression (after 1 evaluation)")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--floor", "0.97"], "give it with --results"),
        (["--floor", "0.97", "--results", "{file}", "--against", "{file}"], "no --against"),
        (["--floor", "0", "--results", "{file}"], "allows anything"),
        (["--floor", "1.2", "--results", "{file}"], "out of range"),
        (["--floor", "0.97", "--results", "{file}"], "no finished cell of specmoe with controller=auto"),
    ],
)
def test_what_cannot_be_judged_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    file = write(tmp_path / "results.jsonl", record("specmoe", 10.0), record("caching", 10.0))
    assert cli.main(["check", *(word.format(file=file) for word in arguments)]) == 2
    assert message in capsys.readouterr().err
