"""The page in headless Chromium: it loads whole, sorts, links, fits a phone, and is accessible (axe).

Chromium is the system's own (Debian: ``apt-get install chromium``); where there is none these tests are skipped.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from reports import ReportPaths

pytestmark = pytest.mark.slow
PHONE, DESKTOP = 390, 1280
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A running Chromium."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install '.[test]'")
    binary = next(filter(None, map(shutil.which, BROWSERS)), None)
    if binary is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=binary)
        yield running
        running.close()


@pytest.fixture(scope="module", params=[PHONE, DESKTOP], ids=["phone", "desktop"])
def page(request: pytest.FixtureRequest, browser: Any, sample_report: ReportPaths) -> Iterator[Any]:
    """The report opened from its file, offline; ``page.said`` collects what the console said."""
    context = browser.new_context(viewport={"width": request.param, "height": 900}, offline=True)
    opened = context.new_page()
    opened.said = []
    opened.on("console", lambda message: opened.said.append(message.text))
    opened.on("pageerror", lambda error: opened.said.append(str(error)))
    opened.on("requestfailed", lambda failed: opened.said.append(failed.url))
    opened.goto(sample_report.page.as_uri())
    yield opened
    context.close()


def _column(page: Any, header: str) -> list[str]:
    """Keys of a column of the first results table, top to bottom."""
    return page.evaluate(
        """header => {
          const table = document.querySelector("#workload-1").parentElement.querySelector("table.sortable");
          const column = [...table.tHead.rows[0].cells].findIndex(head => head.textContent.trim() === header);
          return [...table.tBodies[0].rows].map(row => row.cells[column].dataset.key);
        }""",
        header,
    )


def test_the_page_loads_without_a_word_from_the_console(page: Any) -> None:
    assert page.said == []


def test_every_picture_loads_and_is_wide_enough_to_read(page: Any) -> None:
    widths = page.evaluate("[...document.images].map(image => [image.naturalWidth, image.clientWidth])")
    assert len(widths) >= 14
    assert all(natural > 0 and shown >= 300 for natural, shown in widths)


def test_nothing_is_wider_than_the_screen(page: Any) -> None:
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def test_every_link_within_the_page_leads_somewhere(page: Any) -> None:
    anchors = page.evaluate(
        "[...document.querySelectorAll('a[href^=\"#\"]')].map(a => a.getAttribute('href').slice(1))"
    )
    assert len(anchors) >= 7
    assert page.evaluate("names => names.filter(name => !document.getElementById(name))", anchors) == []
    page.click("nav a[href='#reproduce']")
    assert page.evaluate("location.hash") == "#reproduce"


def test_a_column_sorts_both_ways_and_keeps_empty_cells_last(page: Any) -> None:
    head = page.locator("#workload-1 ~ div.scroll table.sortable th", has_text="link MB per token").locator("button")
    for direction in ("ascending", "descending"):
        head.first.click()
        keys = _column(page, "link MB per token")
        numbers = [float(key) for key in keys if key]
        assert numbers == sorted(numbers, reverse=direction == "descending")
        assert "" in keys, "accelerate-disk has no link"
        assert not any(keys[len(numbers) :])
        assert page.evaluate("d => document.querySelectorAll(`th[aria-sort=${d}]`).length", direction) == 1


def test_tables_can_be_sorted_from_the_keyboard(page: Any) -> None:
    button = page.locator("#workload-1 ~ div.scroll table.sortable th button", has_text="decode tok/s").first
    button.focus()
    page.keyboard.press("Enter")
    keys = [float(key) for key in _column(page, "decode tok/s") if key]
    assert keys == sorted(keys)


def test_raw_values_of_a_cell_unfold(page: Any) -> None:
    assert not page.locator("details pre").first.is_visible()
    page.locator("details summary").first.click()
    assert "expert_budget_bytes" in page.locator("details[open] pre").first.inner_text()


@pytest.mark.parametrize(
    "page", [DESKTOP, pytest.param(PHONE, marks=pytest.mark.slow)], ids=["desktop", "phone"], indirect=True
)
def test_axe_finds_no_violation(page: Any) -> None:
    axe = pytest.importorskip("axe_playwright_python.base").AXE_FILE_PATH
    page.add_script_tag(path=str(axe))
    found = page.evaluate("axe.run()")["violations"]
    assert [(rule["id"], rule["help"], [node["target"] for node in rule["nodes"]]) for rule in found] == []
