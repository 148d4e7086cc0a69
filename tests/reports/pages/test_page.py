"""The report page is self-contained, safe, accessible, and agrees with its markdown text."""

from __future__ import annotations

import itertools
import json
import re
import warnings
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from reports import ReportPaths, write_report
from reports.results.load import ReportError
from reports.wording.tables import COLUMNS
from tests.reports.records import experiment, record, write


class _Page(HTMLParser):
    """Collects elements and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def rich(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of two workloads with failures, an emulated system and hostile text."""
    folder = tmp_path_factory.mktemp("report")
    records = [
        *experiment([8, 8.5], [4, 4]),
        record("caching", 5, batch=4),
        record("specmoe", 9, batch=4, kind="emulated"),
    ]
    records.append(
        record("accelerate-disk", None, batch=4, link=None, status="failed", error="<script>alert(1)</script>")
    )
    records += [record("on-demand", 4, model="other"), record("specmoe", 3, model="other")]
    results = write(folder / "results.jsonl", *records)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        paths = write_report([results], folder / "out", title="A title & more")
    assert paths.page.exists()
    assert paths.markdown.exists()
    return folder / "out"


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> ReportPaths:
    """A report of one system, whose worker the limit covers."""
    folder = tmp_path_factory.mktemp("alone")
    return write_report([write(folder / "a.jsonl", record("on-demand", 4))], folder / "out")


def test_every_figure_has_its_data_beside_it(rich: Path) -> None:
    figures = sorted(path.stem for path in (rich / "figures").glob("*.png"))
    assert figures == sorted(path.stem for path in (rich / "figures").glob("*.csv"))
    assert figures == sorted(path.stem for path in (rich / "figures").glob("*.svg"))
    wanted = {"throughput", "latency", "speedup", "bytes", "bytes_per_token", "tokens_per_step", "hit_rate", "memory"}
    assert wanted | {"acceptance_by_position", "throughput-2"} <= set(figures)
    data = pd.read_csv(rich / "figures" / "throughput.csv")
    assert data[(data["title"] == "specmoe") & (data["kind"] == "measured")]["decode_tok_s"].tolist() == [8.25]
    assert "accelerate-disk" in set(data["title"])


def test_page_needs_nothing_from_outside(rich: Path) -> None:
    text = (rich / "index.html").read_text()
    page = _Page(text)
    for _, attributes in page.elements:
        for name in ("src", "href"):
            value = attributes.get(name) or "#"
            assert value.startswith(("#", "data:")), value[:80]
    assert not re.search(r"@import|url\(|https?://", text)


def test_page_escapes_what_records_say(rich: Path) -> None:
    text = (rich / "index.html").read_text()
    assert "alert(1)</script>" not in text
    assert "&lt;script&gt;alert(1)" in text
    assert "<title>A title &amp; more</title>" in text


def test_page_is_accessible(rich: Path) -> None:
    page = _Page((rich / "index.html").read_text())
    assert page.all("html")[0]["lang"] == "en"
    assert all(len(image["alt"] or "") > 40 for image in page.all("img"))
    assert all(cell.get("scope") in ("col", "row") for cell in page.all("th"))
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_every_sortable_column_has_a_button(rich: Path) -> None:
    page = _Page((rich / "index.html").read_text())
    sortable = [head for head in page.all("th") if "aria-sort" in head]
    assert len(sortable) == len(page.all("button"))
    assert len(sortable) >= 3 * len(COLUMNS)


def test_page_and_markdown_tell_the_same(rich: Path) -> None:
    page, text = (rich / "index.html").read_text(), (rich / "report.md").read_text()
    for words in ("2.06×", "specmoe (emulated)", "Moved between the tiers as single experts", "nox -s reproduce"):
        assert words in page
        assert words in text
    assert "specmoe-bench run --preset quick" in text
    for name in re.findall(r"\]\((figures/[^)]+)\)", text):
        assert (rich / name).exists()


def test_page_keeps_raw_repetitions_and_environment(rich: Path) -> None:
    text = (rich / "index.html").read_text()
    assert "drafted_by_position" in text
    assert "a processor" in text


def test_a_report_of_failures_alone_is_written(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", record("specmoe", None, status="failed", error="out of memory", enforced=False))
    paths = write_report([path], tmp_path / "out")
    assert "out of memory" in paths.page.read_text()
    assert paths.figures == []


def test_the_page_says_which_process_the_limit_covers(tmp_path: Path, alone: ReportPaths) -> None:
    mixed = [record("on-demand", 4), record("llama-cpp", 4, covers="engine")]
    told = write_report([write(tmp_path / "b.jsonl", *mixed)], tmp_path / "told")
    assert "the limit covers it alone" not in alone.page.read_text()
    assert "llama-cpp: the engine is a process of its own, and the limit covers it alone" in told.page.read_text()


def test_a_json_file_that_is_not_a_projection_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(ReportError, match=r"x\.json"):
        write_report([write(tmp_path / "a.jsonl", record("on-demand", 4)), tmp_path / "x.json"], tmp_path / "out")


def test_the_terminal_gets_a_table_with_or_without_specmoe(tmp_path: Path, alone: ReportPaths) -> None:
    both = write_report([write(tmp_path / "b.jsonl", record("on-demand", 4), record("specmoe", 8))], tmp_path / "both")
    assert alone.overview.splitlines()[1].split()[3] == "on-demand"
    assert both.overview.startswith("experiment")


def test_the_tables_are_there_as_json(tmp_path: Path) -> None:
    found = json.loads(
        write_report([write(tmp_path / "r.jsonl", *experiment([8, 9], [4, 4]))], tmp_path / "out").tables.read_text()
    )
    (section,) = found["sections"]
    row = next(row for row in section["tables"][0]["rows"] if row["system"]["text"] == "specmoe")
    assert row["decode tok/s"] == {"text": "8.50", "value": 8.5}
    assert found["overview"]["columns"][0] == "experiment"
    assert section["headline"][0].startswith("SpecMoE")
