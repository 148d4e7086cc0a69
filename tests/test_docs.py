"""The site shows every page, and every page leads somewhere."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml

from tests import ROOT

PAGES = sorted((ROOT / "docs").glob("*.md"))


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_hooks", ROOT / "docs" / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["docs_hooks"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.name)
def test_links_and_includes_lead_to_files(page: Path, hooks: ModuleType) -> None:
    folder = page.parent.relative_to(ROOT).as_posix()
    text = hooks.expanded(page.read_text(), folder)
    assert not [target for target in hooks.targets(text, folder) if not (ROOT / target).exists()]


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


@pytest.mark.parametrize("picture", sorted((ROOT / "docs" / "figures").glob("*.svg")), ids=lambda path: path.name)
def test_a_drawn_picture_says_in_words_what_it_shows(picture: Path) -> None:
    root = ElementTree.parse(picture).getroot()
    parts = {child.get("id"): child for child in root}
    named = root.get("aria-labelledby", "").split()
    assert root.get("role") == "img"
    assert len(named) == 2
    assert all(len("".join(parts[name].itertext())) > 10 for name in named)
