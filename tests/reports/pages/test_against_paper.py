"""The paper's figures stand beside measured ones with the error; emulated results are left out."""

from __future__ import annotations

from pathlib import Path

from reports.pages import against_paper
from tests.reports.records import experiment, record, summary_of


def test_the_papers_figures_stand_beside_ours_with_the_error(tmp_path: Path) -> None:
    summary, frame = summary_of(tmp_path, experiment([8, 8.2, 8.4], [4, 4, 4], link=2.5e6))
    found = against_paper.table(frame, summary)
    assert found is not None
    rows = {row[0].text: [one.text for one in row] for row in found.rows}
    _, theirs, ours, error, conditions = rows["NLLB-MoE throughput over OnDemand"]
    assert (theirs, ours, error) == ("4.30×", "2.05× [2.00×, 2.10×]", "-52 %")
    assert conditions == "specmoe, embedded, batch 4, experts on disk, CPU"
    assert rows["CPU-to-GPU bytes against OnDemand"][2:4] == ["-75.0 % [-75.0 %, -75.0 %]", "+1.7 points"]


def test_an_emulated_result_is_not_compared_with_the_paper(tmp_path: Path) -> None:
    records = [record("on-demand", 4, kind="emulated"), record("specmoe", 8, kind="emulated")]
    summary, frame = summary_of(tmp_path, records)
    assert against_paper.table(frame, summary) is None
