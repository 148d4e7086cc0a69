"""The performance page: targets judged within rounds, four figures, at most 600 words, all from committed records."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest

from harness.cli import main as cli
from harness.cli import performance as performance_command
from reports.pages import performance
from reports.pages.performance_targets import TARGETS, places_of, table
from reports.results import kernels
from reports.results.load import ReportError, load
from reports.results.record import Record
from tests import ROOT
from tests.reports.performance_records import comparison, kernel_record
from tests.reports.records import write

FIGURES = ["performance-kernels", "performance-speed", "performance-cycle", "performance-limit"]
COMMITTED = ROOT / "docs" / "performance.md"


def words(page: str) -> int:
    """Words of a page, those of its tables too, without numbers and the descriptions of pictures."""
    shown = re.sub(r"!\[.*?\]\(.*?\)", "", page, flags=re.DOTALL)
    return sum(any(letter.isalpha() for letter in word) for word in shown.split())


def rows(*records: Record, tmp_path: Path) -> dict[str, list[str]]:
    """Cells of the table of targets by the name of the row."""
    lines = table(places_of(load([write(tmp_path / "results.jsonl", *records)]))).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {name: rest for name, *rest in (cells[0], *cells[2:])}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    results = write(folder / "results.jsonl", *comparison(batches=(1, 8, 32), rounds=3))
    return performance.write([results], kernel_record(folder / "kernels.json"), folder / "performance.md")


@pytest.mark.slow
def test_the_page_has_every_figure_with_its_data(page: Path) -> None:
    text = page.read_text()
    assert re.findall(r"\]\(figures/(.*)\.png\)", text) == FIGURES
    for name in FIGURES:
        assert (page.parent / "figures" / f"{name}.png").exists()
        assert len(pd.read_csv(page.parent / "figures" / f"{name}.csv"))


@pytest.mark.slow
def test_the_page_is_short_and_opens_with_the_result(page: Path) -> None:
    text = page.read_text()
    assert words(text) <= 600
    assert "decodes 3.60x as fast as on-demand loading and 1.44x as fast as the best cache" in " ".join(text.split())
    assert "a processor, 2 cores, 2026-05-04: 16 new tokens, 3 interleaved rounds" in " ".join(text.split())
    assert "read at 88 to 94 % of the memory's rate (bar: 80 %)" in " ".join(text.split())
    assert all(len(line) <= 120 for line in text.splitlines() if not line.startswith(("|", "!")))


@pytest.mark.slow
def test_before_and_after_are_of_one_experiment(page: Path) -> None:
    data = pd.read_csv(page.parent / "figures" / "performance-cycle.csv")
    assert list(dict.fromkeys(data["title"])) == ["before", "after"]
    assert set(data["phase"]) == {"draft", "verify", "wait for link", "refresh", "other"}
    totals = data.drop_duplicates(["title", "batch_size"]).set_index(["title", "batch_size"])["total_ms"]
    assert (totals["before"] / totals["after"]).tolist() == pytest.approx([3.0] * 3)


def test_a_target_is_reached_by_the_median_and_unsure_where_the_interval_holds_it(tmp_path: Path) -> None:
    found = rows(*comparison(batches=(1, 8)), tmp_path=tmp_path)
    assert found["against"] == [f"batch {n}" for n in (1, 8, 32, 64, 128, 256)]
    assert found["on-demand loading, float32, 25 %"][:3] == [
        "3.60 [3.60, 3.60] reached (3.4)",
        "3.60 [3.60, 3.60] missed (4.3)",
        "– (4.3)",
    ]
    assert found["best cache, float32, 25 %"][:2] == [
        "1.44 [1.44, 1.44] reached (1.3)",
        "1.44 [1.44, 1.44] reached (1.25)",
    ]
    assert found["best rival, lowest cell"][0] == "1.44 [1.44, 1.44] reached (0.97)"
    assert found["link rate in I/O-bound cycles"][0] == "0.96 [0.96, 0.96] reached (0.95)"
    assert found["achieved over limit"][0] == "0.75 [0.72, 0.78] missed, unsure (0.75)"
    assert found["best cache, bfloat16, 40 %"][0] == "– (1.15)"


def test_every_stored_dtype_budget_and_outside_system_has_a_row(tmp_path: Path) -> None:
    narrow = comparison("b", (8,), budget="40%", stored="bfloat16", speeds={"SpecMoE automatic": 140.0})
    fill = comparison("c", (8,), budget="fill", speeds={"llama-cpp": 30.0})
    resident = comparison("d", (1,), budget="100%", speeds={"llama-cpp": 240.0})
    chats = comparison("e", (8,), model="smollm2-moe-fine", speeds={"SpecMoE automatic": 120.0})
    found = rows(*narrow, *fill, *resident, *chats, tmp_path=tmp_path)
    assert found["best cache, bfloat16, 40 %"][1].startswith("1.12 [1.12, 1.12] missed (1.15)")
    assert found["llama.cpp, float32, same limit"][1] == "6.00 [6.00, 6.00] reached (6)"
    assert found["step time over llama.cpp, all resident (at most)"][0].endswith("reached (1.5)")
    assert found["best cache, smollm2-moe-fine"][1].startswith("0.96 [0.96, 0.96] missed (1)")
    assert found["best rival, lowest cell"][1].startswith("0.96 [0.96, 0.96] missed (0.97)")


def test_an_experiment_in_which_systems_fill_the_limit_counts_for_no_share(tmp_path: Path) -> None:
    records = comparison("same-limit", (8,), speeds={"llama-cpp": 30.0})
    filled = [
        one.model_copy(update={"config": one.config | {"systems": [{"system": "specmoe", "expert_budget": "fill"}]}})
        for one in records
    ]
    found = rows(*filled, tmp_path=tmp_path)
    assert found["best cache, float32, 25 %"][1] == "– (1.25)"
    assert found["llama.cpp, float32, same limit"][1] == "6.00 [6.00, 6.00] reached (6)"


def test_every_target_has_a_name_of_its_own() -> None:
    assert len({target.name for target in TARGETS}) == len(TARGETS)
    assert all(target.bars for target in TARGETS)


def test_without_records_the_page_says_so_and_without_anything_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="run `specmoe-bench run performance-short`"):
        performance.write([], None, tmp_path / "performance.md")
    damaged = tmp_path / "kernels.json"
    for content, message in (("{", "is not JSON"), ("{}", "no kernel record")):
        damaged.write_text(content)
        with pytest.raises(ReportError, match=message):
            kernels.load(damaged)
    with pytest.raises(ReportError, match="test_kernels"):
        kernels.load(tmp_path / "absent.json")


@pytest.mark.slow
def test_the_command_takes_the_committed_records_and_writes_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "docs" / "records" / "performance").mkdir(parents=True)
    kernel_record(tmp_path / performance_command.KERNELS)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["performance"]) == 0
    assert "have not been measured" in (tmp_path / "docs" / "performance.md").read_text()
    write(tmp_path / performance_command.RECORDS / "a.jsonl", *comparison(batches=(1,), rounds=1))
    assert cli.main(["performance"]) == 0
    text = (tmp_path / "docs" / "performance.md").read_text()
    assert "| 3.60 reached (3.4) |" in text


@pytest.mark.slow
@pytest.mark.skipif(not COMMITTED.exists(), reason="no committed page")
def test_the_committed_page_holds_the_committed_records(tmp_path: Path) -> None:
    results = sorted((ROOT / performance_command.RECORDS).glob("*.jsonl"))
    kernel = ROOT / performance_command.KERNELS
    again = performance.write(results, kernel if kernel.exists() else None, tmp_path / "performance.md")
    assert again.read_text() == COMMITTED.read_text(), "run `specmoe-bench performance`"
    assert words(again.read_text()) <= 600
