"""The page of a projection: every headline figure of the paper, reasons for large errors, tables and figures."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pytest

from harness.projection import output
from reports.pages import projection, projection_tables
from reports.results import paper
from reports.results.load import ReportError
from reports.results.projection import load
from tests import ROOT

RECORDS = ROOT / "docs" / "records"
COMMITTED = RECORDS / "projection.json"


def test_the_committed_projection_has_every_headline_figure() -> None:
    content = load(COMMITTED)
    assert content["kind"] == "projected"
    asked = {
        "speedup.nllb",
        "latency.nllb",
        "bytes.vs-on-demand",
        "bytes.vs-caching",
        "speedup.mixtral",
        "speedup.scout",
    }
    asked |= {f"growth.{s}" for s in ("on-demand", "caching", "specmoe")} | {"ssd.specmoe"}
    asked |= {f"n-sweep.{n}.{what}" for n in (2, 4, 8, 16) for what in ("tokens", "throughput")}
    assert asked <= {row["id"] for row in content["paper"]}
    for row in content["paper"]:
        assert row["paper"] == paper.figure(row["id"]).value
        assert row["error"] == pytest.approx(row["projected"] / row["paper"] - 1, abs=1e-4)
    assert content["validation"]["median_absolute_error"] <= 0.15


def test_large_errors_come_with_a_reason() -> None:
    content = load(COMMITTED)
    missed = [
        r for r in content["paper"] if abs(r["error"]) > projection_tables.NOTABLE_ERROR and r["role"] == "prediction"
    ]
    told = " ".join(titles for titles, _ in projection_tables.shortfalls(content))
    assert missed
    for row in missed:
        assert row["why"]
        assert row["title"] in told


@pytest.mark.slow
def test_a_part_has_tables_and_figures_with_their_data(tmp_path: Path) -> None:
    first, second = projection.parts([COMMITTED, COMMITTED], tmp_path / "figures")
    assert (first.anchor, second.anchor) == ("projection", "projection-2")
    assert all(len(row) == len(table.headers) for table in first.tables for row in table.rows)
    assert {table.kind for table in first.tables} == {"projected"}
    assert {"projection-sensitivity", "projection-validation"} <= {figure.id for figure in first.figures}
    for drawn in first.figures:
        assert len(drawn.alt) > 40
        assert "Hollow marks" in drawn.caption
        assert min(p.stat().st_size for p in (drawn.png, drawn.svg)) > 5000
        assert len(pd.read_csv(drawn.csv))
    assert not {figure.png for figure in first.figures} & {figure.png for figure in second.figures}


def test_a_projection_without_validation_is_shown_without_it(tmp_path: Path) -> None:
    content = json.loads(COMMITTED.read_text()) | {"validation": None, "other_machines": []}
    path = output.write(content, tmp_path / "projection.json")
    text = projection.markdown(path)
    assert "measured on this machine and not used" not in text
    assert "Predicted against measured" not in text


@pytest.mark.slow
def test_a_projection_without_validation_has_no_figure_of_it(tmp_path: Path) -> None:
    content = json.loads(COMMITTED.read_text()) | {"validation": None, "other_machines": []}
    path = output.write(content, tmp_path / "projection.json")
    (part,) = projection.parts([path], tmp_path / "figures")
    assert "projection-validation" not in {figure.id for figure in part.figures}


def test_the_overview_has_one_row_per_choice_with_a_verdict_of_three_words() -> None:
    first, selection, *others = (
        [cell.text for cell in row] for row in projection_tables.overview(load(COMMITTED)).rows
    )
    assert first[3:] == ["3.81× [2.61, 5.30]", "4.30×", "clear projected gain"]
    assert selection[1:] == ["hot-temporal", "NLLB-MoE, paper's machine", "1.06×", "1.14×", "small projected effect"]
    assert all(len(row[-1].split()) == 3 for row in (first, selection, *others))


@pytest.mark.slow
def test_the_committed_page_shows_the_committed_projection(tmp_path: Path) -> None:
    committed = RECORDS.parent / "projection.md"
    again = projection.write(COMMITTED, tmp_path / "projection.md")
    assert committed.read_text() == again.read_text(), "run the command that it names"
    for picture in re.findall(r"\]\((figures/.*?)\)", committed.read_text()):
        assert (committed.parent / picture).exists()
        data = Path(picture).with_suffix(".csv")
        assert (committed.parent / data).read_text() == (again.parent / data).read_text()


@pytest.mark.parametrize("content", ["", "[]", '{"schema_version": "other"}'])
def test_a_file_that_is_not_a_projection_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "projection.json"
    path.write_text(content)
    with pytest.raises(ReportError, match=r"projection\.json"):
        load(path)
    with pytest.raises(ReportError, match="no projection at"):
        load(tmp_path / "other.json")
