"""Reports: claims about loading, ratios, tables, figures and the page, on records made here."""

from __future__ import annotations

import itertools
import json
import re
import warnings
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from reports import ReportError, write_report
from reports.figures.style import assign
from reports.pages import against_paper
from reports.results.acceptance import by_position
from reports.results.aggregate import bootstrap, ratio_of, summarize
from reports.results.load import METRICS, SCHEMA, load, workload_names
from reports.results.record import Cell, Covers, Kind, Limit, Metrics, Record, Repetition, ResultFile, Status
from reports.wording import overview as glance
from reports.wording.headline import headline
from reports.wording.tables import COLUMNS, Table, TableCell, cell, markdown, number, percent, tables
from reports.wording.warnings import doubts

BUDGET = 100_000_000


def record(
    system: str,
    speed: float | None,
    *,
    batch: int = 1,
    rnd: int = 0,
    kind: Kind = "measured",
    status: Status = "ok",
    label: str | None = None,
    budget: int = BUDGET,
    model: str = "embedded",
    enforced: bool = True,
    covers: Covers = "worker",
    link: float | None = 10e6,
    error: str | None = None,
    options: dict[str, Any] | None = None,
    drafted: list[int] | None = None,
    accepted: list[int] | None = None,
    fidelity: float = 1.0,
    run: str = "run-1",
    environment: dict[str, Any] | None = None,
    raw: dict[str, Any] | None = None,
    config: dict[str, Any] | None = None,
    throttle: int | None = None,
) -> Record:
    """A record of made-up figures; ``raw`` adds fields to its one repetition."""
    cell = Cell(
        system=system,
        options=options or {},
        model=model,
        batch_size=batch,
        new_tokens=16,
        expert_budget_bytes=budget,
        process_limit_bytes=1_000_000_000,
        disk_read_limit_bytes_s=throttle,
    )
    metrics, repetitions = None, []
    if speed is not None:
        metrics = Metrics(
            prefill_tok_s=100,
            decode_tok_s=speed,
            ttft_s=0.5,
            tpot_s=batch / speed,
            tokens_per_step=2.5 if drafted else 1.0,
            acceptance_rate=0.5 if drafted else None,
            hit_rate=0.4 if link is not None else None,
            link_bytes=None if link is None else int(link * 15 * batch),
            link_bytes_per_token=link,
            kernel_read_bytes=int(12e6 * 15 * batch),
            kernel_read_bytes_per_token=12e6,
            peak_device_expert_bytes=budget if link is not None else None,
            peak_rss_bytes=700_000_000,
            fidelity=fidelity,
        )
        repetitions = [
            Repetition(
                prefill_s=0.5,
                decode_s=16 * batch / speed,
                prompt_tokens=20 * batch,
                new_tokens=16 * batch,
                decode_steps=15,
                drafted_by_position=drafted,
                accepted_by_position=accepted,
                **(raw or {}),
            )
        ]
    return Record(
        run_id=run,
        cell_id=cell.cell_id,
        round=rnd,
        kind=kind,
        status=status,
        error=error,
        label=label or system,
        lossless=True,
        grain="experts" if link is not None else "modules",
        cell=cell,
        started_at="2026-05-04T03:02:01Z",
        wall_s=4.0,
        limit=Limit(
            enforced=enforced,
            mechanism="cgroup-v2" if enforced else "none",
            limit_bytes=1_000_000_000,
            covers=covers,
        ),
        metrics=metrics,
        repetitions=repetitions,
        environment=environment or {"cpu": "a processor", "cores": 2, "python": "3.11", "git_dirty": False},
        config=config or {"command": ["specmoe-bench", "run", "--preset", "quick"]},
    )


def write(path: Path, *records: Record) -> Path:
    for one in records:
        ResultFile(path).append(one)
    return path


def experiment(subject: list[float], reference: list[float], link: float = 5e6) -> list[Record]:
    """Interleaved rounds of specmoe and on-demand at batch 4 with the given speeds."""
    out = []
    for rnd, (ours, theirs) in enumerate(zip(subject, reference, strict=True)):
        out.append(record("on-demand", theirs, batch=4, rnd=rnd))
        out.append(record("specmoe", ours, batch=4, rnd=rnd, link=link, drafted=[10, 8], accepted=[8, 4]))
    return out


def summary_of(tmp_path: Path, records: list[Record]) -> tuple[pd.DataFrame, pd.DataFrame]:
    frame = load([write(tmp_path / "results.jsonl", *records)])
    return summarize(frame), frame


def row_of(summary: pd.DataFrame, **where: Any) -> dict[str, Any]:
    for name, value in where.items():
        summary = summary[summary[name] == value]
    assert len(summary) == 1
    return dict(summary.iloc[0])


# Loading


def test_every_record_becomes_a_row_with_its_parsed_line(tmp_path: Path) -> None:
    frame = load([write(tmp_path / "a.jsonl", *experiment([8, 9], [4, 4]))])
    assert len(frame) == 4
    assert set(METRICS) <= set(frame.columns)
    assert frame["record"][0]["cell"]["system"] == frame["system"][0] == "on-demand"
    assert frame["limit_enforced"].all()


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match=r"nowhere\.jsonl"):
        load([tmp_path / "nowhere.jsonl"])


def test_empty_results_say_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "empty.jsonl"
    path.touch()
    with pytest.raises(ReportError, match="specmoe-bench run"):
        load([path])


def test_torn_line_is_skipped_with_a_warning(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", record("on-demand", 4))
    whole = path.read_text()
    path.write_text(whole + whole[:40])
    with pytest.warns(UserWarning, match=r"a\.jsonl:2: torn line"):
        frame = load([path])
    assert len(frame) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": "specmoe-bench.result/9"}, "result/9"),
        ({"schema_version": None}, "schema None"),
        ({"cell": {"system": "x"}}, r"lacks cell\.model, cell\.batch_size"),
        ({"metrics": None}, "lacks metrics"),
        ({"metrics": {"decode_tok_s": "fast"}}, "'fast', not a number"),
    ],
)
def test_a_line_that_is_no_record_is_named_with_file_and_line(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = write(tmp_path / "a.jsonl", record("on-demand", 4))
    payload = json.loads(path.read_text()) | change
    del payload["checksum"]  # it seals the unchanged line
    path.write_text(path.read_text() + json.dumps(payload) + "\n")
    with pytest.raises(ReportError, match=r"a\.jsonl:2.*" + message):
        load([path])


def test_json_that_is_not_an_object_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("[1]\n")
    with pytest.raises(ReportError, match=rf"a\.jsonl:1 is not a {SCHEMA} record"):
        load([path])


def test_a_record_written_again_replaces_the_earlier_one(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", record("on-demand", None, status="failed"), record("on-demand", 4))
    with pytest.warns(UserWarning, match="the last counts"):
        frame = load([path])
    assert list(frame["status"]) == ["ok"]


def test_one_label_for_two_budgets_is_told_apart_and_not_averaged(tmp_path: Path) -> None:
    summary, _ = summary_of(tmp_path, [record("caching", 4), record("caching", 8, budget=3 * BUDGET)])
    assert sorted(summary["title"]) == ["caching (100 MB)", "caching (300 MB)"]
    assert sorted(summary["decode_tok_s"]) == [4, 8]


def test_workloads_are_never_averaged_and_each_is_named(tmp_path: Path) -> None:
    summary, frame = summary_of(tmp_path, [record("on-demand", 4), record("on-demand", 8, model="other")])
    assert len(summary) == 2
    names = workload_names(frame).values()
    assert len(set(names)) == 2
    assert any("other" in name for name in names)


def test_results_of_two_machines_are_never_averaged(tmp_path: Path) -> None:
    elsewhere = record("on-demand", 40, rnd=1, environment={"cpu": "another"})
    summary, _ = summary_of(tmp_path, [record("on-demand", 4), elsewhere])
    assert sorted(summary["decode_tok_s"]) == [4, 40]


# Ratios


def test_ratio_is_taken_within_a_round_not_between_medians(tmp_path: Path) -> None:
    # The machine slows down fourfold; within each round specmoe stays exactly twice as fast.
    summary, _ = summary_of(tmp_path, experiment([16, 8, 4], [8, 4, 2]))
    ratio = ratio_of(row_of(summary, system="specmoe"))
    assert (ratio.median, ratio.low, ratio.high, ratio.n) == (2, 2, 2, 3)


def test_rounds_of_different_runs_are_not_paired(tmp_path: Path) -> None:
    records = [record("on-demand", 4, run="monday"), record("specmoe", 8, run="tuesday")]
    summary, _ = summary_of(tmp_path, records)
    assert ratio_of(row_of(summary, system="specmoe")).n == 0


def test_a_round_without_reference_gives_no_ratio(tmp_path: Path) -> None:
    records = [*experiment([8, 9], [4, 4]), record("specmoe", 99, batch=4, rnd=2, link=5e6)]
    summary, _ = summary_of(tmp_path, records)
    row = row_of(summary, system="specmoe")
    assert (row["rounds_ok"], ratio_of(row).n) == (3, 2)


def test_interval_holds_the_median_and_stays_within_the_ratios_seen() -> None:
    ratios = [1.1, 1.4, 1.2, 1.3, 1.25, 1.5, 1.05]
    ratio = bootstrap(ratios)
    assert ratio.low is not None
    assert ratio.high is not None
    assert min(ratios) <= ratio.low < 1.25 < ratio.high <= max(ratios)
    assert ratio == bootstrap(ratios)


def test_one_round_has_no_interval_and_says_so() -> None:
    ratio = bootstrap([1.5])
    assert (ratio.low, ratio.high, ratio.verdict) == (None, None, "single")
    assert str(ratio) == "1.50× (n=1)"


def test_no_ratio_is_shown_as_not_applicable() -> None:
    assert str(bootstrap([])) == str(bootstrap([float("nan")])) == "–"


@pytest.mark.parametrize(
    ("ratios", "verdict"), [([1.1, 1.2, 1.3], "faster"), ([0.8, 0.9, 0.7], "slower"), ([0.9, 1.0, 1.2], "same")]
)
def test_verdict_follows_the_interval(ratios: list[float], verdict: str) -> None:
    assert bootstrap(ratios).verdict == verdict


def test_reference_of_the_same_budget_is_preferred(tmp_path: Path) -> None:
    records = [
        record("on-demand", 4),
        record("on-demand", 8, budget=2 * BUDGET),
        record("specmoe", 16, budget=2 * BUDGET),
    ]
    summary, _ = summary_of(tmp_path, records)
    assert ratio_of(row_of(summary, system="specmoe")).median == 2


# Tables


def test_failed_cells_stay_visible_with_their_reason(tmp_path: Path) -> None:
    records = [
        record("on-demand", 4),
        record("accelerate-disk", None, status="timeout", error="no answer within 600 s"),
        record("caching", None, status="not_supported", error="no room for\none expert"),
    ]
    summary, _ = summary_of(tmp_path, records)
    text = markdown(tables(summary)[0])
    assert "timeout: no answer within 600 s" in text
    assert "not_supported: no room for one expert" in text


def test_a_cell_that_failed_in_one_round_shows_figures_and_the_failure(tmp_path: Path) -> None:
    records = [record("on-demand", 4), record("on-demand", None, rnd=1, status="failed", error="killed")]
    summary, _ = summary_of(tmp_path, records)
    line = markdown(tables(summary)[0]).splitlines()[2]
    assert "| 4.00 |" in line
    assert "failed: killed (1 of 2 rounds finished)" in line


def test_kinds_get_tables_of_their_own_and_are_labelled_in_every_row(tmp_path: Path) -> None:
    records = [
        record("on-demand", 4),
        record("on-demand", 400, kind="emulated"),
        record("specmoe", 99, kind="projected"),
    ]
    summary, _ = summary_of(tmp_path, records)
    found = tables(summary)
    assert [table.kind for table in found] == ["measured", "emulated", "projected"]
    assert [[row[0].text for row in table.rows] for table in found] == [
        ["on-demand"],
        ["on-demand (emulated)"],
        ["specmoe (projected)"],
    ]
    assert row_of(summary, kind="measured")["decode_tok_s"] == 4


def test_emulated_speed_is_never_divided_by_measured_speed(tmp_path: Path) -> None:
    summary, _ = summary_of(tmp_path, [record("on-demand", 4), record("specmoe", 40, kind="emulated")])
    assert ratio_of(row_of(summary, kind="emulated")).median is None


def test_an_oracle_is_compared_with_measured_on_demand_and_says_so(tmp_path: Path) -> None:
    summary, _ = summary_of(tmp_path, [record("on-demand", 4), record("overlap", 6, kind="oracle")])
    assert "1.50× (n=1) of measured on-demand" in markdown(tables(summary)[1])


def test_unenforced_limits_are_marked(tmp_path: Path) -> None:
    summary, frame = summary_of(tmp_path, [record("on-demand", 4, enforced=False), record("specmoe", 4)])
    text = markdown(tables(summary)[0])
    assert ["unenforced" in line for line in text.splitlines()[2:]] == [True, False]
    assert any("not enforced" in doubt for doubt in doubts(summary, frame))


def test_the_page_says_whose_process_the_limit_covers(tmp_path: Path) -> None:
    alike = write_report([write(tmp_path / "a.jsonl", record("on-demand", 4))], tmp_path / "alike")
    mixed = [record("on-demand", 4), record("llama-cpp", 4, covers="engine")]
    told = write_report([write(tmp_path / "b.jsonl", *mixed)], tmp_path / "told")
    assert "the limit covers it alone" not in alike.page.read_text()
    assert "llama-cpp: the engine is a process of its own, and the limit covers it alone" in told.page.read_text()


def test_a_differing_budget_is_called_out_in_its_row(tmp_path: Path) -> None:
    records = [
        record("on-demand", 4),
        record("specmoe", 4),
        record("caching", 5, label="caching 10%", budget=4 * BUDGET),
    ]
    summary, _ = summary_of(tmp_path, records)
    notes = {row[0].text: row[-1].text for row in tables(summary)[0].rows}
    assert notes == {"on-demand": "", "specmoe": "", "caching 10%": "budget 400 MB"}


def test_figures_are_in_the_units_of_the_header(tmp_path: Path) -> None:
    summary, _ = summary_of(tmp_path, [record("on-demand", 4)])
    shown = dict(zip([column.header for column in COLUMNS], tables(summary)[0].rows[0], strict=True))
    assert shown["link MB per token"].text == "10.0"
    assert shown["peak process GB"].text == "0.700"
    assert shown["acceptance"].text == "–"
    assert shown["acceptance"].key is None


def test_pipes_in_reasons_do_not_break_the_table(tmp_path: Path) -> None:
    summary, _ = summary_of(tmp_path, [record("on-demand", None, status="failed", error="a | b")])
    assert "a \\| b" in markdown(tables(summary)[0])


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (float("nan"), "–"), (0, "0"), (1234.5, "1,234"), (12.34, "12.3"), (0.01234, "0.012")],
)
def test_numbers_keep_three_digits(value: float | None, text: str) -> None:
    assert number(value) == text


def test_a_share_below_one_is_never_shown_as_all() -> None:
    assert percent(0.9999) == "99.9 %"
    assert percent(1.0) == "100.0 %"


# Acceptance


def test_acceptance_by_position_is_a_ratio_of_sums(tmp_path: Path) -> None:
    records = [
        record("specmoe", 4, drafted=[10, 10], accepted=[10, 5]),
        record("specmoe", 4, rnd=1, drafted=[30], accepted=[10]),
        record("on-demand", 4),
    ]
    _, frame = summary_of(tmp_path, records)
    data = by_position(frame)
    assert list(data["position"]) == [1, 2]
    assert list(data["accepted_share"]) == [0.5, 0.5]
    assert set(data["system"]) == {"specmoe"}


# Headline


def test_headline_says_faster_with_interval_and_bytes(tmp_path: Path) -> None:
    said = headline(*summary_of(tmp_path, experiment([8, 8.2, 8.4], [4, 4, 4])))
    assert "decodes 2.05× [2.00, 2.10] as fast as on-demand at batch 4" in said.summary
    assert "moving 50 % fewer bytes per token" in said.summary


def test_headline_says_slower_and_more_bytes(tmp_path: Path) -> None:
    said = headline(*summary_of(tmp_path, experiment([2, 2.1, 2.2], [4, 4, 4], link=12e6)))
    assert "is slower than on-demand at batch 4" in said.summary
    assert "moving 20 % more bytes per token" in said.summary
    assert "as fast as" not in said.summary


def test_headline_refuses_to_choose_when_the_interval_holds_one(tmp_path: Path) -> None:
    said = headline(*summary_of(tmp_path, experiment([3.8, 4.0, 4.3], [4, 4, 4])))
    assert "cannot be told apart from on-demand" in said.summary


def test_headline_of_one_round_claims_no_interval(tmp_path: Path) -> None:
    said = headline(*summary_of(tmp_path, experiment([8], [4])))
    assert "in the one round measured (n=1, no interval)" in said.summary


def test_headline_names_the_batches_where_it_loses(tmp_path: Path) -> None:
    slow = [record(s, v, batch=1, rnd=r) for r in range(3) for s, v in (("on-demand", 4), ("specmoe", 2))]
    said = headline(*summary_of(tmp_path, [*slow, *experiment([8, 8, 8], [4, 4, 4])]))
    assert said.summary.endswith("is faster than on-demand at batch 4, slower at batch 1.")


def test_headline_tells_of_a_rival_that_is_faster(tmp_path: Path) -> None:
    rival = [record("caching", 16, batch=4, rnd=rnd, budget=3 * BUDGET) for rnd in range(3)]
    said = headline(*summary_of(tmp_path, [*experiment([8, 8, 8], [4, 4, 4]), *rival]))
    assert "caching, with a budget of 300 MB: 0.50× [0.50, 0.50] (slower)" in said.sentences[0]


def test_headline_says_how_many_configurations_it_chose_from(tmp_path: Path) -> None:
    other = [record("specmoe", 5, batch=4, rnd=r, label="specmoe γ=9", options={"gamma": 9}) for r in range(2)]
    said = headline(*summary_of(tmp_path, [*experiment([8, 8], [4, 4]), *other]))
    assert "the fastest of 2 configurations" in said.summary


def test_headline_of_emulated_results_says_not_measured(tmp_path: Path) -> None:
    records = [record("on-demand", 4, kind="emulated"), record("specmoe", 8, kind="emulated")]
    assert headline(*summary_of(tmp_path, records)).summary.startswith("Emulated, not measured: ")


@pytest.mark.parametrize(
    ("records", "words"),
    [
        ([record("on-demand", 4)], "was not measured"),
        ([record("on-demand", 4), record("specmoe", None, status="failed", error="out of memory")], "out of memory"),
        ([record("specmoe", 4)], "no on-demand result"),
    ],
)
def test_headline_without_a_comparison_says_why(tmp_path: Path, records: list[Record], words: str) -> None:
    assert words in headline(*summary_of(tmp_path, records)).summary


def test_a_lossless_system_with_other_tokens_is_doubted(tmp_path: Path) -> None:
    records = [record("on-demand", 4, rnd=rnd, fidelity=fidelity) for rnd, fidelity in enumerate((1.0, 1.0, 0.5))]
    assert any("token for token" in doubt for doubt in doubts(*summary_of(tmp_path, records)))


# Style


def test_systems_keep_their_colour_whoever_else_is_there() -> None:
    alone = assign([("specmoe", "specmoe")])
    crowd = assign([("specmoe", "specmoe"), ("caching", "caching"), ("caching 10%", "caching"), ("new", "new")])
    assert alone["specmoe"] == crowd["specmoe"]
    assert len({look.color for look in crowd.values()}) == len({look.marker for look in crowd.values()}) == 4


def test_caches_of_a_share_look_the_same_whatever_else_is_shown() -> None:
    shares = [("caching 10%", "caching"), ("caching 25%", "caching")]
    alone = [assign([share])[share[0]] for share in shares]
    among = assign([*shares, ("caching", "caching"), ("caching LFU", "caching"), ("new", "new")])
    assert [among[title] for title, _ in shares] == alone
    assert len({(look.color, look.marker) for look in among.values()}) == 5


def test_variants_of_a_system_differ_in_colour_and_marker() -> None:
    looks = assign([(f"specmoe γ={gamma}", "specmoe") for gamma in (3, 5, 7)]).values()
    assert len({look.color for look in looks}) == len({look.marker for look in looks}) == 3


# The whole report


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


def test_failed_attempts_show_although_a_later_one_finished(tmp_path: Path) -> None:
    lost = record("specmoe", None, status="failed", error="disk on fire", batch=4)
    records = [record("on-demand", 5, batch=4), lost, lost, record("specmoe", 10, batch=4)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        summary, frame = summary_of(tmp_path, records)
    row = summary[summary["system"] == "specmoe"].iloc[0]
    assert (row["status"], row["rounds"], row["failed_attempts"]) == ("ok", 1, 2)
    assert any("only after failed attempts: specmoe at batch 4" in doubt for doubt in doubts(summary, frame))
    cells = tables(summary)[0].rows
    assert any("after 2 failed attempts" in row[-1].text for row in cells)


def test_a_spread_too_wide_to_conclude_is_said(tmp_path: Path) -> None:
    wild = experiment([10, 22, 7, 15, 30, 9], [5, 5, 5, 5, 5, 5])
    assert any("too wide to conclude" in doubt for doubt in doubts(*summary_of(tmp_path / "a", wild)))
    calm = experiment([10, 10.1, 9.9, 10, 10.05, 9.95], [5, 5, 5, 5, 5, 5])
    summary, frame = summary_of(tmp_path / "b", calm)
    assert summary[summary["system"] == "specmoe"]["stability"].tolist() == ["stable"]
    assert not any("too wide to conclude" in doubt for doubt in doubts(summary, frame))


def test_the_headline_gives_the_geometric_mean_over_batches(tmp_path: Path) -> None:
    records = []
    for batch, speed in ((1, 20.0), (8, 5.0)):
        for rnd in range(2):
            records += [record("on-demand", 10, batch=batch, rnd=rnd), record("specmoe", speed, batch=batch, rnd=rnd)]
    said = headline(*summary_of(tmp_path, records))
    assert "Geometric mean of the speed-ups over 2 batch sizes: 1.00× [1.00, 1.00]." in said.sentences


# Beside the paper, and at a glance


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("28.6", 28.6),
        ("(+18.3%, input)", 18.3),
        ("-76.7 % [-77, -76]", -76.7),
        ("1,932", 1932.0),
        ("2.09× [1.9, 3.4]", 2.09),
    ],
)
def test_a_cell_of_text_sorts_by_the_number_it_begins_with(text: str, key: float) -> None:
    assert cell(text).key == key


@pytest.mark.parametrize("text", ["N = 2: T(10)", "hot-global", "caching 10%", "4 of 5"])
def test_a_cell_of_words_sorts_as_text(text: str) -> None:
    assert cell(text).key in (text, 4.0)


def test_the_papers_figures_stand_beside_ours_with_the_error(tmp_path: Path) -> None:
    summary, frame = summary_of(tmp_path, experiment([8, 8.2, 8.4], [4, 4, 4], link=2.5e6))
    found = against_paper.table(frame, summary)
    assert found is not None
    rows = {row[0].text: [one.text for one in row] for row in found.rows}
    _, theirs, ours, error, conditions = rows["NLLB-MoE throughput over OnDemand"]
    assert (theirs, ours, error) == ("4.30×", "2.05× [2.00×, 2.10×]", "-52 %")
    assert conditions == "specmoe, embedded, batch 4, experts on disk, CPU"
    assert rows["CPU-to-GPU bytes against OnDemand"][2:4] == ["-75.0 % [-75.0 %, -75.0 %]", "+1.7 points"]


def test_an_emulated_result_is_not_held_against_the_paper(tmp_path: Path) -> None:
    records = [record("on-demand", 4, kind="emulated"), record("specmoe", 8, kind="emulated")]
    summary, frame = summary_of(tmp_path, records)
    assert against_paper.table(frame, summary) is None


def test_the_glance_names_the_fastest_setting_and_its_best_rival(tmp_path: Path) -> None:
    other = [record("specmoe", 5, batch=4, rnd=r, label="slow", options={"gamma": 9}) for r in range(2)]
    rival = [record("caching", 16, batch=4, rnd=r) for r in range(2)]
    summary, frame = summary_of(tmp_path, [*experiment([8, 8], [4, 4]), *other, *rival])
    (row,) = glance.table(frame, summary).rows
    assert [one.text for one in row][3:8] == [
        "specmoe",
        "8.00",
        "2.00× [2.00, 2.00] of on-demand",
        "0.50× [0.50, 0.50] of caching",
        "-50 %",
    ]


def test_an_ablation_is_held_against_the_first_setting_it_names(tmp_path: Path) -> None:
    config = {"name": "a", "systems": [{"system": "specmoe", "label": "plain"}, {"system": "specmoe", "label": "new"}]}
    labels = (("new", 6, {"gamma": 2}), ("plain", 4, {}))
    records = [
        record("specmoe", speed, rnd=rnd, label=label, options=options, config=config)
        for rnd in range(2)
        for label, speed, options in labels
    ]
    said = headline(*summary_of(tmp_path, records)).summary
    assert "new decodes 1.50× [1.50, 1.50] as fast as plain" in said


def test_a_json_file_that_is_no_projection_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(ReportError, match=r"x\.json"):
        write_report([write(tmp_path / "a.jsonl", record("on-demand", 4)), tmp_path / "x.json"], tmp_path / "out")


def test_markdown_aligns_figures_right_and_words_left() -> None:
    rows = [
        [TableCell("a", "a"), TableCell("–", None), TableCell("7", 7.0)],
        [TableCell("b", "b"), *[TableCell("2", 2.0)] * 2],
    ]
    assert markdown(Table("measured", "", ["name", "x", "y"], rows)).splitlines()[1] == "| --- | ---: | ---: |"
