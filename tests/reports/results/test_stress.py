"""Result files under stress get one clear answer, the same from report, compare, check and export."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.cli import main as cli
from reports import figures
from reports.results.lines import seal
from tests.reports.records import experiment, record, write

Payload = dict[str, Any]


@pytest.fixture
def answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[bytes], dict[str, tuple[int, list[str]]]]:
    """Exit code and lines on standard error of each command that reads results, for the content of a file."""
    monkeypatch.setattr(figures, "draw", lambda *_, **__: [])  # they are not what is asked about
    good = str(write(tmp_path / "good.jsonl", *experiment([8, 8, 8], [4, 4, 4])))
    file, out = tmp_path / "results.jsonl", str(tmp_path / "out")

    def ask(content: bytes) -> dict[str, tuple[int, list[str]]]:
        file.write_bytes(content)
        commands = {
            "report": ["report", str(file), "--out", out],
            "compare": ["compare", good, str(file)],
            "check": ["check", "--against", good, "--results", str(file)],
            "export": ["export", str(file), "--out", f"{out}.csv", "--overwrite"],
        }
        found = {}
        for name, command in commands.items():
            code = cli.main(command)
            found[name] = code, capsys.readouterr().err.splitlines()
        return found

    return ask


def lines(*changes: tuple[str, Any]) -> list[str]:
    """Sealed lines of three rounds of two systems; each change is a path in the fourth line and its new value."""
    payloads = [json.loads(one.model_dump_json()) for one in experiment([8, 8, 8], [4, 4, 4])]
    for path, value in changes:
        *inner, last = path.split(".")
        place: Any = payloads[3]
        for name in inner:
            place = place[int(name)] if isinstance(place, list) else place[name]
        place[last] = value
    return [seal(json.dumps(payload)) for payload in payloads]


def text(found: list[str]) -> bytes:
    return ("\n".join(found) + "\n").encode()


@pytest.mark.parametrize(
    "path", ["metrics.decode_tok_s", "metrics.hit_rate", "repetitions.0.decode_s", "wall_s", "environment.cores"]
)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_number_that_is_not_finite_is_refused_wherever_it_is(path: str, value: float, answers: Any) -> None:
    for name, (code, said) in answers(text(lines((path, value)))).items():
        assert (code, len(said)) == (2, 1), name
        assert f"results.jsonl:4: {path} is {value}" in said[0]
        assert "not a finite number: remove that line or name another file" in said[0]


def test_digits_that_overflow_are_not_finite_either(answers: Any) -> None:
    found, payload = lines(), json.loads(lines()[3]) | {"wall_s": 123.25}
    del payload["checksum"]
    found[3] = seal(json.dumps(payload).replace("123.25", "1e999"))
    for name, (code, said) in answers(text(found)).items():
        assert (code, len(said)) == (2, 1), name
        assert "results.jsonl:4: wall_s is inf, not a finite number" in said[0]


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        ("cell.batch_size", 0, "cell.batch_size"),
        ("round", "one", "round"),
        ("label", None, "label"),
        ("status", "great", "status"),
        ("kind", "guessed", "kind"),
        ("environment", [1], "environment"),
        ("repetitions", {"a": 1}, "repetitions"),
        ("surprise", 1, "surprise"),
        ("schema_version", "specmoe-bench.result/99", "schema 'specmoe-bench.result/99'"),
    ],
)
def test_a_line_against_the_schema_is_refused_with_its_field(path: str, value: Any, field: str, answers: Any) -> None:
    for name, (code, said) in answers(text(lines((path, value)))).items():
        assert (code, len(said)) == (2, 1), name
        assert "results.jsonl:4" in said[0]
        assert field in said[0]


def test_carriage_returns_and_a_byte_order_mark_change_nothing(answers: Any) -> None:
    plain = answers(text(lines()))
    assert [code for code, _ in plain.values()] == [0, 0, 3, 0], "three rounds are too few for the gate"
    assert answers(text(lines()).replace(b"\n", b"\r\n")) == plain
    assert answers(b"\xef\xbb\xbf" + text(lines())) == plain


def test_cells_given_twice_count_once_with_a_warning(answers: Any) -> None:
    plain = answers(text(lines()))
    for name, (code, said) in answers(text(lines() + lines()[:2])).items():
        assert code == plain[name][0]
        assert len(said) == 1, name
        assert "2 records were replaced by another one of the same cell and round" in said[0]


def test_damaged_lines_are_one_warning_however_many(answers: Any) -> None:
    cut = [line[:50] for line in lines()]
    for name, (code, said) in answers(text(lines() + cut)).items():
        assert code == (3 if name == "check" else 0)
        assert len(said) == 1, name
        assert "results.jsonl:7: damaged line skipped" in said[0]
        assert said[0].endswith(", and 5 more")


@pytest.mark.parametrize(
    "content", [b"", b"hello\n", text(lines()).decode().encode("utf-16"), b"\0" * 50], ids=range(4)
)
def test_a_file_without_a_record_is_one_error(content: bytes, answers: Any) -> None:
    for name, (code, said) in answers(content).items():
        errors = [line for line in said if "warning:" not in line]
        assert (code, len(errors)) == (2, 1), name
        assert len(said) <= 2
        assert "no records" in errors[0] or "nothing in it has finished" in errors[0]


def test_several_models_in_one_file_are_kept_apart(tmp_path: Path, answers: Any) -> None:
    other = [
        record(s, v, batch=4, rnd=r, model="other") for r in range(3) for s, v in (("on-demand", 1), ("specmoe", 9))
    ]
    both = text(lines()) + write(tmp_path / "other.jsonl", *other).read_bytes()
    assert [code for code, _ in answers(both).values()] == [0, 0, 3, 0]
    page = (tmp_path / "out" / "report.md").read_text()
    assert "2.00×" in page
    assert "9.00×" in page
