"""The paper's figures stand beside ours with the error: measured ones, and in a table of their own emulated ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from reports.pages import against_paper
from reports.results.record import Record
from tests.reports.records import experiment, record, summary_of


def test_the_papers_figures_stand_beside_ours_with_the_error(tmp_path: Path) -> None:
    summary, frame = summary_of(tmp_path, experiment([8, 8.2, 8.4], [4, 4, 4], link=2.5e6))
    (found,) = against_paper.tables(frame, summary)
    assert found.kind == "measured"
    rows = {row[0].text: [one.text for one in row] for row in found.rows}
    _, theirs, ours, error, conditions = rows["NLLB-MoE throughput over OnDemand"]
    assert (theirs, ours, error) == ("4.30×", "2.05× [2.00×, 2.10×]", "-52 %")
    assert conditions == "specmoe, embedded, batch 4, experts on disk, CPU"
    assert rows["CPU-to-GPU bytes against OnDemand"][2:4] == ["-75.0 % [-75.0 %, -75.0 %]", "+1.7 points"]


def test_the_result_of_a_throttled_disk_is_not_compared_with_the_paper(tmp_path: Path) -> None:
    records = [record(name, 4, kind="emulated", throttle=400_000_000) for name in ("on-demand", "specmoe")]
    summary, frame = summary_of(tmp_path, records)
    assert against_paper.tables(frame, summary) == []


def paced(system: str, speed: float, batch: int, **changes: Any) -> Record:
    """A record on a link of 0.4 GB/s, of a model of NLLB-MoE's geometry."""
    given: dict[str, Any] = {"kind": "oracle" if system == "overlap" else "emulated", "model": "nllb-moe-like-x32"}
    return record(system, speed, batch=batch, slow_tier="paced:0.4GB/s", **given | changes)


PAPERS = {"gamma": 10, "draft_experts": 4, "placement": "on-demand"}


def test_results_over_a_paced_link_stand_beside_the_papers_as_emulated(tmp_path: Path) -> None:
    records = []
    for batch in (1, 256):
        records += [
            paced("on-demand", 2, batch, link=20e6, raw={"decode_link_wait_s": 2.0 * batch}),
            paced("overlap", 3, batch),
            paced("caching", 4, batch, link=10e6),
            paced("specmoe", 6, batch, link=5e6, options=PAPERS),
            paced("specmoe", 9, batch, label="automatic", options=PAPERS | {"controller": "auto"}),
        ]
    records += [record("on-demand", 4), record("specmoe", 4, options=PAPERS)]
    summary, frame = summary_of(tmp_path, records)
    measured, emulated = against_paper.tables(frame, summary)
    assert (measured.kind, emulated.kind) == ("measured", "emulated")
    assert "emulated" in emulated.caption
    rows = {row[0].text: [one.text for one in row] for row in emulated.rows}
    assert rows["NLLB-MoE throughput over OnDemand"][2] == "3.00×", "the paper's setting, not the fastest"
    assert rows["CPU-to-GPU bytes against OnDemand"][2] == "-75.0 %"
    assert rows["bytes, batch 1 to 256: OnDemand"][2] == "256.00×"
    assert rows["share of time spent on migration, at most"][2] == "25.0 %"
    assert all("host memory paced to 0.4GB/s (emulated), CPU" in row[-1] for row in rows.values())
    assert "SpecMoE, SSD tier" not in rows


def test_overlap_and_caching_of_both_models_with_few_experts_stand_beside_the_papers(tmp_path: Path) -> None:
    records = []
    for model, gain in (("mixtral-like-x32", 1.0), ("llama4-like-x32", 1.2)):
        config = {"name": model}
        records += [
            paced("on-demand", 2, 4, model=model, config=config),
            paced("overlap", 2.5 * gain, 4, model=model, config=config),
            paced("caching", 2.2 * gain, 4, model=model, config=config),
            paced("specmoe", 4 * gain, 4, model=model, config=config, options={"gamma": 5}),
        ]
    summary, frame = summary_of(tmp_path, records)
    (emulated,) = against_paper.tables(frame, summary)
    rows = {row[0].text: row[2].text for row in emulated.rows}
    assert rows["Mixtral-8x7B over OnDemand"] == "2.00×"
    assert rows["Llama-4-Scout over OnDemand"] == "2.40×"
    assert rows["Overlap over OnDemand, Mixtral and Scout"] == "1.50×"
    assert rows["Caching over OnDemand, Mixtral and Scout"] == "1.32×"
