"""The site shows every page, links and includes resolve, and quoted figures are those of the committed records."""

from __future__ import annotations

import importlib.util
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pandas as pd
import pytest
import yaml

from reports.results.load import load
from tests import ROOT

PAGES = sorted((ROOT / "docs").glob("*.md"))


def module_of(path: Path) -> ModuleType:
    """The module of a Python file that is in no package."""
    name = f"docs_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    return module_of(ROOT / "docs" / "hooks.py")


def listed(nav: Any) -> Iterator[str]:
    """The files of a navigation, sections opened."""
    if isinstance(nav, str):
        yield nav
    else:
        for entry in nav.values() if isinstance(nav, dict) else nav:
            yield from listed(entry)


def test_the_navigation_has_every_page_once() -> None:
    nav = list(listed(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    assert sorted(nav) == [page.name for page in PAGES]


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES], ids=lambda page: page.name)
def test_links_and_includes_lead_to_files(page: Path, hooks: ModuleType) -> None:
    folder = page.parent.relative_to(ROOT).as_posix()
    text = hooks.expanded(page.read_text(), folder)
    assert not [target for target in hooks.targets(text, folder) if not (ROOT / target).exists()]


PATH = re.compile(r"`((?:specmoe|harness|reports|baselines|workloads|tests|docs|examples)/[\w./-]+)`")
INVENTED = {"baselines/my_system.py", "reports/figures/first_token.py", "workloads/prompts/NAME.jsonl"}  # in guides


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES], ids=lambda page: page.name)
def test_a_path_named_in_a_document_exists(page: Path) -> None:
    named = set(PATH.findall(page.read_text())) - INVENTED
    assert not [path for path in named if not (ROOT / path).exists() and not (page.parent / path).exists()]


def test_an_include_that_leads_nowhere_is_an_error(hooks: ModuleType) -> None:
    for line, message in {
        "<!-- include: no-such.md -->": "no such file",
        "<!-- include: README.md#No such section -->": "there are '', ",
    }.items():
        with pytest.raises(hooks.IncludeError, match=message):
            hooks.expanded(line, "docs")


def test_links_of_an_included_section_hold_from_the_page(hooks: ModuleType) -> None:
    text = hooks.expanded("<!-- include: README.md#Add a system -->", "docs")
    assert "](adding-a-baseline.md)" in text
    assert "](docs/" not in text


def test_code_that_a_page_links_to_gets_a_page_of_its_own(hooks: ModuleType) -> None:
    documents = [
        ("docs/x.md", "[a](../specmoe/offload/link.py) [b](../tests/example_system) [c](record.md) [d](https://x.y)")
    ]
    pages = hooks.pages_of_code(documents)
    assert pages == {
        "specmoe/offload/link.py": "code/specmoe/offload/link.py.md",
        "tests/example_system": "code/tests/example_system.md",
    }
    assert 'title="specmoe/offload/link.py"' in hooks.code_page("specmoe/offload/link.py")
    assert "register" in hooks.code_page("tests/example_system")


def test_a_link_to_a_file_that_a_page_includes_whole_leads_to_that_page(hooks: ModuleType) -> None:
    documents = [("docs/contributing.md", "<!-- include: CONTRIBUTING.md -->\n"), ("docs/x.md", "text")]
    assert hooks.included_whole(documents) == {"CONTRIBUTING.md": "contributing.md"}


def test_a_notebook_is_shown_as_text_and_code(hooks: ModuleType) -> None:
    page = hooks.code_page("examples/results.ipynb")
    assert "## Read a result file with pandas" in page
    assert "](../../record.md)" in page
    assert "import pandas as pd" in page
    assert "cell_type" not in page


def test_the_table_of_the_readme_holds_the_medians_of_the_records() -> None:
    titles = ["on-demand", "caching", "caching LFU", "caching 10%", "accelerate-disk", "SpecMoE", "SpecMoE controller"]
    records = load([ROOT / "docs" / "records" / "full" / "quick.jsonl"])
    records = records[records["status"] == "ok"]
    megabytes = records["link_bytes_per_token"].fillna(records["kernel_read_bytes_per_token"]) / 1e6
    medians = records.assign(megabytes=megabytes).groupby(["title", "batch_size"]).median(numeric_only=True)
    table = [line.split("|")[2:5] for line in (ROOT / "README.md").read_text().splitlines() if " / " in line]
    shown = [[cell.strip() for cell in row] for row in table if "/" in row[0] and "T(gamma)" not in row[0]]
    expected = [
        [
            f"{cell.decode_tok_s:.0f} / {cell.megabytes:.1f} / {cell.tokens_per_step:.2f}"
            for cell in (medians.loc[title, batch] for batch in (1, 8, 32))
        ]
        for title in titles
    ]
    assert shown == expected


def test_the_figure_of_the_readme_is_that_of_the_records() -> None:
    finding = module_of(ROOT / "docs" / "figures" / "finding.py")
    drawn = pd.read_csv(ROOT / "docs" / "figures" / "finding.csv")
    pd.testing.assert_frame_equal(finding.compute(), drawn, check_dtype=False)


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 90


def test_contributing_names_every_room() -> None:
    packages = ("specmoe", "baselines", "workloads", "reports", "harness")
    rooms = set(packages) | {
        init.parent.relative_to(ROOT).as_posix() for name in packages for init in (ROOT / name).glob("*/__init__.py")
    }
    text = (ROOT / "CONTRIBUTING.md").read_text().split("## Rooms")[1].split("\n## ")[0]
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    assert {name.strip("`") for row in rows for name in row.strip().split(", ")} == rooms


def test_the_citation_names_the_software_and_the_paper() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert all("family-names" in author or "name" in author for author in citation["authors"])
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (citation["title"], str(citation["version"])) == (project["name"], project["version"])
    (paper,) = citation["references"]
    assert paper["title"].startswith("SpecMoE: ")
    assert [author["family-names"] for author in paper["authors"]] == ["Bang", "Cho", "Hwang", "Chung", "Rhu"]
    assert paper["url"].endswith("2604.10152")


def test_hooks_before_a_commit_need_nothing_from_the_network() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    assert [repo["repo"] for repo in config["repos"]] == ["local"]
    assert {hook["language"] for hook in config["repos"][0]["hooks"]} == {"system"}


# Pictures that a page includes inline; figures from records have their text beside the image.
INLINE = [path for path in sorted((ROOT / "docs" / "figures").glob("*.svg")) if not path.with_suffix(".csv").exists()]


@pytest.mark.parametrize("picture", INLINE, ids=lambda path: path.name)
def test_an_inline_picture_has_a_title_and_a_description(picture: Path) -> None:
    root = ElementTree.parse(picture).getroot()
    parts = {child.get("id"): child for child in root}
    named = root.get("aria-labelledby", "").split()
    assert root.get("role") == "img"
    assert len(named) == 2
    assert all(len("".join(parts[name].itertext())) > 10 for name in named)
