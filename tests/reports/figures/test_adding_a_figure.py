"""A figure declared in one new module appears at its place on the page, with PNG, SVG and CSV."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pandas as pd
import pytest

from reports import figures, write_report
from tests import ROOT
from tests.reports.records import write
from tests.reports.sample_report import comparison


@pytest.fixture
def added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The guide's example as one more module of the package; returns its source."""
    guide = (ROOT / "docs" / "how-figures-are-made.md").read_text()
    (source,) = re.findall(r"```python\n(.*?)```", guide, flags=re.DOTALL)
    folder = tmp_path / "more-figures"
    folder.mkdir()
    (folder / "first_token.py").write_text(source)
    monkeypatch.setattr(figures, "__path__", [*figures.__path__, str(folder)])
    monkeypatch.delitem(sys.modules, "reports.figures.first_token", raising=False)
    return source


@pytest.mark.usefixtures("added")
def test_a_new_module_is_declared_at_its_place() -> None:
    declared = [spec.id for spec in figures.all_specs()]
    place = declared.index("first_token")
    assert declared[place - 1 : place + 2] == ["latency", "first_token", "speedup"]


@pytest.mark.slow
@pytest.mark.usefixtures("added")
def test_a_new_module_is_a_new_figure_at_its_place(tmp_path: Path) -> None:
    out = tmp_path / "out"
    paths = write_report([write(tmp_path / "results.jsonl", *comparison())], out)
    shown = re.findall(r'<figure id="workload-1-([a-z_]+)">', paths.page.read_text())
    place = shown.index("first_token")
    assert shown[place - 1 : place + 2] == ["latency", "first_token", "speedup"]
    assert "![Time to the first token. In s: " in paths.markdown.read_text()
    assert (out / "figures" / "first_token.png") in paths.figures
    assert (out / "figures" / "first_token.svg").exists()
    assert pd.read_csv(out / "figures" / "first_token.csv")["ttft_s"].tolist()[:2] == [0.5, 0.5]


def test_without_the_module_there_is_no_such_figure() -> None:
    assert "first_token" not in {spec.id for spec in figures.all_specs()}


def test_two_figures_of_one_id_are_refused(added: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "more-figures" / "again.py").write_text(added)
    monkeypatch.delitem(sys.modules, "reports.figures.again", raising=False)
    with pytest.raises(ValueError, match="first_token: rename one of each"):
        figures.all_specs()
