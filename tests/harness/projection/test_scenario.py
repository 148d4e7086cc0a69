"""The paper's systems on synthetic traces: bytes depend on the policy alone, inputs state their origin."""

from __future__ import annotations

from dataclasses import replace

import pytest

from harness.projection import hardware, inputs, scenario
from harness.projection.hardware import H100_PCIE5
from harness.projection.models import PUBLIC
from tests.harness.projection.small_model import ROUTING, SMALL, machine


def test_speculation_helps_on_a_slow_link_only() -> None:
    def speedup(link_gb_s: float) -> float:
        on = machine(link_gb_s=link_gb_s, layer_launch_s=1e-3)
        ours, theirs = (scenario.run(s, SMALL, ROUTING, on, 16).tok_s for s in ("specmoe", "on-demand"))  # type: ignore[arg-type]
        return ours / theirs

    assert speedup(0.1) > 2
    assert speedup(1000.0) < 1


def test_bytes_do_not_depend_on_the_machine() -> None:
    moved = [scenario.run("specmoe", SMALL, ROUTING, m, 16).moved_bytes for m in hardware.PROFILES.values()]
    assert len(set(moved)) == 1


def test_a_cache_moves_less_than_on_demand() -> None:
    routing = replace(ROUTING, caching_share=0.25)
    cached, plain = (scenario.run(s, SMALL, routing, H100_PCIE5, 4) for s in ("caching", "on-demand"))  # type: ignore[arg-type]
    assert cached.moved_bytes < 0.8 * plain.moved_bytes
    assert cached.tokens == plain.tokens


@pytest.mark.parametrize(("tokens", "gamma"), [(7.265, 10), (1.0, 4), (6.0, 5), (2.5, 5)])
def test_acceptance_gives_back_the_tokens_per_step_it_came_from(tokens: float, gamma: int) -> None:
    accepted = scenario.acceptance_for(tokens, gamma)
    assert scenario.expected_tokens(accepted, gamma) == pytest.approx(tokens, abs=1e-6)


def test_impossible_tokens_per_step_are_refused() -> None:
    with pytest.raises(ValueError, match="impossible with gamma 5"):
        scenario.acceptance_for(7.0, 5)


def test_more_pinned_experts_cover_and_accept_more() -> None:
    given = replace(ROUTING, substitute_acceptance=0.8)
    fewer, more = (scenario.with_draft_experts(SMALL, given, 16, n) for n in (2, 8))
    assert fewer.acceptance < given.acceptance < more.acceptance
    assert scenario.with_draft_experts(SMALL, given, 16, 4).acceptance == pytest.approx(given.acceptance)


def test_the_papers_link_rate_follows_from_its_own_figures() -> None:
    step_s = 256 / 28.6
    assert inputs.paper_machine().link_gb_s.value == pytest.approx(28 / (0.9011 * step_s))


def test_every_input_states_its_origin() -> None:
    given = [i for name in PUBLIC for i in inputs.of_model(name).inputs]
    given += [i for m in (*hardware.PROFILES.values(), inputs.paper_machine(), inputs.ssd_machine()) for i in m.inputs]
    assert {i.origin for i in given} <= {"paper", "measured here", "assumed", "public"}
    with pytest.raises(ValueError, match="unknown model"):
        inputs.of_model("gpt-2")
