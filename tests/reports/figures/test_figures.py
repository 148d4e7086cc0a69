"""Each figure is made from records alone, painted from its CSV alone, and declared with its place on the page."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from reports import figures
from reports.figures import GROUPS, Material, all_specs, looks_of
from reports.figures.spec import Scope
from reports.figures.style import KINDS, KNOWN, assign, bar_marks, line_marks
from reports.results import aggregate
from reports.results.kernels import load as load_kernels
from reports.results.load import configured_order, load
from reports.results.projection import load as load_projection
from reports.results.stats import bootstrap
from tests import ROOT
from tests.reports.performance_records import comparison, kernel_record
from tests.reports.records import write
from tests.reports.sample_report import everything

SPECS = all_specs()
PAGE_ORDER = [
    *("throughput", "latency", "speedup"),
    *("first_token_percentiles", "inter_token_percentiles", "end_to_end_percentiles", "arrivals", "warm_up"),
    *("bytes", "bytes_per_token", "phases"),
    *("selection", "draft_experts", "affinity", "gamma", "settings"),
    *(
        "tokens_per_step",
        "accepted_length",
        "hit_rate",
        "acceptance_by_position",
        "controller",
        "prefetch",
        "memory",
        "link_rate",
    ),
    *("low_hotness", "ssd_tier"),
    *("projection-paper", "projection-validation", "projection-sensitivity", "projection-link", "projection-batch"),
    *("performance-kernels", "performance-speed", "performance-cycle", "performance-limit"),
]


@pytest.fixture(scope="module")
def frame(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """Records with something for every figure, as loaded."""
    return configured_order(load([write(tmp_path_factory.mktemp("records") / "results.jsonl", *everything())]))


@pytest.fixture(scope="module")
def material(frame: pd.DataFrame) -> Material:
    """The comparison on one model."""
    return _of(frame, "by-batch-embedded-x32-None")


def _of(frame: pd.DataFrame, experiment: str) -> Material:
    """The section of one experiment; no figure of a section reads its summary."""
    return Material(frame[frame["experiment"] == experiment].reset_index(drop=True), pd.DataFrame())


@pytest.fixture(scope="module")
def drawn(frame: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Material, figures.Figure]]:
    """Every figure once, with what it was made of."""
    folder = tmp_path_factory.mktemp("figures")
    compared = frame[frame["experiment"].str.startswith("by-batch")].reset_index(drop=True)
    materials = [Material(compared, aggregate.summarize(compared))]
    materials += [_of(frame, experiment) for experiment in frame["experiment"].unique()]
    found: dict[str, tuple[Material, figures.Figure]] = {}
    materials.append(Material(projection=load_projection(ROOT / "docs" / "records" / "projection.json")))
    suite = load([write(folder / "performance.jsonl", *comparison())])
    materials.append(Material(suite, kernels=load_kernels(kernel_record(folder / "kernels.json"))))
    for one in materials:
        scope: Scope = "projection" if one.projection else "across" if len(one.summary) else "section"
        scope = "performance" if one.kernels else scope
        wanted = [spec for spec in SPECS if spec.id not in found]
        found |= {figure.id: (one, figure) for figure in figures.draw(one, folder, scope=scope, specs=wanted)}
    return found


def _data(id: str, material: Material) -> pd.DataFrame:
    return _spec(id).data(material)


def _spec(id: str) -> figures.Spec:
    return next(spec for spec in SPECS if spec.id == id)


def test_figures_stand_in_page_order() -> None:
    assert [spec.id for spec in SPECS] == PAGE_ORDER
    assert list(dict.fromkeys(spec.place[0] for spec in SPECS)) == list(GROUPS)
    places = [spec.place for spec in SPECS]
    assert len(set(places)) == len(places), "two figures of one rank"


def test_an_unknown_group_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown group 'elsewhere': use one of speed"):
        replace(_spec("memory"), place=("elsewhere", 1))


@pytest.mark.slow
@pytest.mark.parametrize("id", [spec.id for spec in SPECS])
def test_every_figure_is_drawn_in_both_formats_with_its_data(drawn: dict, id: str) -> None:
    _, figure = drawn[id]
    assert figure.png.read_bytes().startswith(b"\x89PNG")
    assert "<svg" in figure.svg.read_text()[:600]
    assert len(pd.read_csv(figure.csv))


@pytest.mark.slow
@pytest.mark.parametrize(
    "id",
    ["throughput", "controller", "projection-batch", "speedup", "phases", "selection", "ssd_tier", "performance-speed"],
)
def test_a_picture_needs_nothing_but_its_csv(id: str, drawn: dict, tmp_path: Path) -> None:
    material, figure = drawn[id]
    data = pd.read_csv(figure.csv)
    looks = looks_of(material.records if _spec(id).scope == "section" else data)
    again = figures.write(_spec(id), data, looks, tmp_path, "", "")
    assert again.svg.read_text() == figure.svg.read_text()


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.id)
def test_every_figure_states_its_question_the_records_it_needs_and_their_command(spec: figures.Spec) -> None:
    assert spec.question.endswith("?")
    assert spec.needs
    assert spec.command.startswith(("nox -s reproduce", "nox -s bench", "specmoe-bench "))


def test_axes_carry_units_and_the_interval_is_drawn(material: Material) -> None:
    spec = _spec("latency")
    picture = spec.paint(spec.data(material), looks_of(material.records))
    axes = picture.axes[0]
    assert axes.get_ylabel() == "ms per output token (log scale)"
    assert axes.get_xlabel() == "batch size (sequences)"
    assert len(axes.containers) == 6, "one error bar for each system"
    plt.close(picture)


def test_intervals_are_those_of_the_rounds(material: Material) -> None:
    row = _data("throughput", material).query("title == 'SpecMoE' and batch_size == 4").iloc[0]
    rounds = material.records.query("title == 'SpecMoE' and batch_size == 4")["decode_tok_s"].tolist()
    expected = bootstrap(rounds)
    assert (row["decode_tok_s"], row["n"]) == (expected.median, 2)
    assert (row["decode_tok_s_low"], row["decode_tok_s_high"]) == (expected.low, expected.high)


def test_acceptance_is_no_surer_for_rounds_that_repeat_the_same_tokens(material: Material) -> None:
    once = Material(material.records[material.records["round"] == 0].reset_index(drop=True), pd.DataFrame())
    lows = [_data("acceptance_by_position", m)["accepted_percent_low"].tolist() for m in (material, once)]
    assert lows[0] == lows[1]


def test_speed_ups_are_against_every_rival_oracles_included(material: Material) -> None:
    data = _data("speedup", material)
    assert set(data["rival"]) == {"on-demand", "caching", "overlap", "accelerate-disk"}
    assert set(data[data["rival"] == "overlap"]["rival_kind"]) == {"oracle"}


def test_bytes_grow_over_the_smallest_batch_and_say_who_counted(material: Material) -> None:
    data = _data("bytes", material)
    assert set(data[data["title"] == "accelerate-disk"]["counted_by"]) == {"kernel"}
    assert data[data["title"] == "on-demand"]["over_smallest_batch"].tolist() == [1, 4]


def test_sweeps_keep_the_experiments_order_and_its_baseline(frame: pd.DataFrame) -> None:
    data = _data("selection", _of(frame, "ablation-selection"))
    assert data["setting"].tolist() == ["random", "hot-global", "hot-temporal"]
    assert data["speed"].iloc[0] == 1
    assert data["speed"].is_monotonic_increasing


def test_figures_without_records_are_left_out_and_listed_as_missing(material: Material, tmp_path: Path) -> None:
    figures_drawn = figures.draw(material, tmp_path, specs=[_spec("memory"), _spec("selection")])
    assert [figure.id for figure in figures_drawn] == ["memory"]
    assert "selection" in [spec.id for spec in figures.missing(figures_drawn)]


def test_no_two_systems_share_a_colour_or_a_marker() -> None:
    colors, markers = zip(*KNOWN.values(), strict=True)
    assert len(set(colors)) == len(set(markers)) == len(KNOWN)


def test_a_systems_colour_is_the_same_on_every_figure() -> None:
    small = assign([("on-demand", "on-demand"), ("SpecMoE", "specmoe"), ("strange", "strange")])
    large = assign(
        [*((name, name) for name in KNOWN if name != "specmoe"), ("SpecMoE", "specmoe"), ("strange", "strange")]
    )
    assert all(small[title] == large[title] for title in small)


def test_kinds_never_share_a_mark_style() -> None:
    look = assign([("specmoe", "specmoe")])["specmoe"]
    lines = [(m["linestyle"], m["fillstyle"]) for m in (line_marks(look, kind) for kind in KINDS)]
    bars = [tuple(sorted(bar_marks(look.color, kind).items())) for kind in KINDS]
    for marks in (lines, bars):
        assert all(a != b for a, b in itertools.combinations(marks, 2))
    assert len({line for line, _ in lines}) == len({fill for _, fill in lines}) == len(KINDS)
