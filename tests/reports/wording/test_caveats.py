"""Every weakness of the results is reported as a caveat."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest

from harness.run.session import tier_notes
from reports.pages.sections import section
from reports.wording.tables import markdown, tables
from reports.wording.warnings import caveats
from tests.reports.records import experiment, record, summary_of


def test_unenforced_limits_are_marked(tmp_path: Path) -> None:
    summary, frame = summary_of(tmp_path, [record("on-demand", 4, enforced=False), record("specmoe", 4)])
    text = markdown(tables(summary)[0])
    assert ["limit not enforced" in line for line in text.splitlines()[2:]] == [True, False]
    assert any("did not enforce" in caveat for caveat in caveats(summary, frame))


def test_a_lossless_system_with_different_tokens_gets_a_caveat(tmp_path: Path) -> None:
    records = [record("on-demand", 4, rnd=rnd, fidelity=fidelity) for rnd, fidelity in enumerate((1.0, 1.0, 0.5))]
    assert any("differs from the reference tokens" in caveat for caveat in caveats(*summary_of(tmp_path, records)))


def _differing(kind: str, margin: float) -> dict[str, Any]:
    """Fields of a repetition whose third row differs."""
    difference = {"row": 2, "position": 7, "token": 5, "reference_token": 9, "margin": margin, "kind": kind}
    return {"fidelity_kind": kind, "differences": [difference], "noise_floor": 0.02}


def test_a_tie_is_told_from_an_error_by_page_and_table(tmp_path: Path) -> None:
    records = [
        record("caching", 4, fidelity=0.8, raw=_differing("tie", 0.01)),
        record("specmoe", 4, fidelity=0.8, raw=_differing("differs", 1.5)),
    ]
    summary, frame = summary_of(tmp_path, records)
    found = caveats(summary, frame)
    (wrong,) = [caveat for caveat in found if "Output is wrong" in caveat]
    assert "specmoe at batch 1 (row 2, new token 7: 5 for 9, logit margin 1.5, noise floor 0.02)" in wrong
    assert "caching" not in wrong
    (tie,) = [caveat for caveat in found if "as likely as each other" in caveat]
    assert "caching at batch 1 (row 2, new token 7: 5 for 9, logit margin 0.01, noise floor 0.02)" in tie
    notes = [row[-1].text for row in tables(summary)[0].rows]
    assert ["other tokens at ties only" in note for note in notes] == [True, False]


def test_failed_attempts_show_although_a_later_one_finished(tmp_path: Path) -> None:
    lost = record("specmoe", None, status="failed", error="disk on fire", batch=4)
    records = [record("on-demand", 5, batch=4), lost, lost, record("specmoe", 10, batch=4)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        summary, frame = summary_of(tmp_path, records)
    row = summary[summary["system"] == "specmoe"].iloc[0]
    assert (row["status"], row["rounds"], row["failed_attempts"]) == ("ok", 1, 2)
    assert any("only after failed attempts: specmoe at batch 4" in caveat for caveat in caveats(summary, frame))
    cells = tables(summary)[0].rows
    assert any("after 2 failed attempts" in row[-1].text for row in cells)


def test_a_spread_too_wide_to_conclude_gets_a_caveat(tmp_path: Path) -> None:
    wild = experiment([10, 22, 7, 15, 30, 9], [5, 5, 5, 5, 5, 5])
    assert any("vary too much" in caveat for caveat in caveats(*summary_of(tmp_path / "a", wild)))
    calm = experiment([10, 10.1, 9.9, 10, 10.05, 9.95], [5, 5, 5, 5, 5, 5])
    summary, frame = summary_of(tmp_path / "b", calm)
    assert summary[summary["system"] == "specmoe"]["stability"].tolist() == ["stable"]
    assert not any("vary too much" in caveat for caveat in caveats(summary, frame))


@pytest.mark.parametrize(
    ("kernel_read_bytes", "slow_tier", "expected"),
    [
        (0, "disk", True),
        (4e6, "disk", True),
        (10e6, "disk", False),
        (0, "host", False),
        (0, "paced:1GB/s", False),
        (None, "disk", False),
    ],
)
def test_experts_that_the_kernel_did_not_read_get_a_note_and_a_caveat(
    kernel_read_bytes: float | None, slow_tier: str, expected: bool, tmp_path: Path
) -> None:
    entry = record("specmoe", 5, slow_tier=slow_tier)
    assert entry.metrics is not None
    change = {"link_bytes": 10_000_000, "kernel_read_bytes": kernel_read_bytes and int(kernel_read_bytes)}
    entry = entry.model_copy(update={"metrics": entry.metrics.model_copy(update=change)})
    assert any("slow tier was memory" in note for note in tier_notes(entry.metrics, entry.cell, 1000)) is expected
    assert any("memory, not a disk" in c for c in caveats(*summary_of(tmp_path, [entry]))) is expected


def test_the_setup_and_the_fairness_of_a_gpu_are_told(tmp_path: Path) -> None:
    entries = [record(name, 5, device="cuda", slow_tier="host") for name in ("specmoe", "hf-resident", "llama-cpp")]
    bounds = ("expert budget", "allocator cap", "nothing")
    held = [
        entry.model_copy(
            update={"limit": entry.limit.model_copy(update={"device_held_by": by, "slow_tier_bytes": 2_000_000_000})}
        )
        for entry, by in zip(entries, bounds, strict=True)
    ]
    shown = section(0, *summary_of(tmp_path, held), [], "name")
    assert {("Device", "cuda"), ("Experts rest in", "host memory")} <= set(shown.setup)
    text = " ".join(shown.fairness)
    assert "Memory of the GPU is bounded by the expert budget alone: specmoe." in text
    assert "by a cap on torch's allocator: hf-resident." in text
    assert "by nothing but its size: llama-cpp." in text
    assert "2.00 GB of its limit are for them" in text
    assert "page cache and experts in host memory included" in dict(shown.setup)["Memory limit of the process"]


def test_the_setup_names_the_file_system_of_the_experts(tmp_path: Path) -> None:
    entry = record("specmoe", 5, environment={"store_filesystem": "tmpfs: memory, not a disk"})
    shown = section(0, *summary_of(tmp_path, [entry]), [], "name")
    assert ("File system of the experts", "tmpfs: memory, not a disk") in shown.setup


def test_sampled_tokens_of_another_distribution_are_named(tmp_path: Path) -> None:
    good, bad = record("on-demand", 5.0, fidelity=None), record("specmoe", 5.0, fidelity=None)
    assert good.metrics is not None
    assert bad.metrics is not None
    records = [
        good.model_copy(update={"metrics": good.metrics.model_copy(update={"distribution_p": 0.2})}),
        bad.model_copy(update={"metrics": bad.metrics.model_copy(update={"distribution_p": 1e-7})}),
    ]
    found = [caveat for caveat in caveats(*summary_of(tmp_path, records)) if "not distributed" in caveat]
    assert found == [
        "Sampled tokens are not distributed as the reference model's although the system should be lossless (p below "
        "0.0001): specmoe at batch 1."
    ]
