"""The paper's figures as data."""

from __future__ import annotations

import pytest

from reports.results import paper


def test_every_figure_has_an_id_of_its_own() -> None:
    ids = [figure.id for figure in paper.FIGURES]
    assert len(set(ids)) == len(ids)


def test_conditions_name_models_of_the_papers_table() -> None:
    known = {model.id for model in paper.MODELS}
    assert {f.conditions.model for f in paper.FIGURES} - {None} == known


def test_figures_that_the_paper_states_twice_agree() -> None:
    speedup = paper.figure("throughput.specmoe").value / paper.figure("throughput.on-demand").value
    assert speedup == pytest.approx(paper.figure("speedup.nllb").value, rel=0.005)
    assert 100 / paper.figure("speedup.nllb").value == pytest.approx(paper.figure("latency.nllb").value, abs=0.5)
    assert paper.figure("n-sweep.4.tokens").value == paper.figure("selection.hot-temporal.tokens").value
    assert paper.figure("n-sweep.4.throughput").value == pytest.approx(
        paper.figure("throughput.specmoe").value, rel=1e-3
    )


def test_an_unknown_model_is_refused_by_name() -> None:
    assert paper.model("nllb-moe").experts == 128
    with pytest.raises(KeyError, match="no model 'gpt-2'"):
        paper.model("gpt-2")
