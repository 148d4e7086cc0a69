"""A pass is described once and ends with its block: nothing of it reaches a later pass."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from specmoe import SpecMoE, StoreError
from specmoe.model.pass_state import INITIAL_TAIL, Pass, prompt_pass
from specmoe.options import SpecOptions
from specmoe.recorder import NoRecorder
from tests.conftest import prompts
from tests.specmoe.offload.bench import SlowSource

Tiny = tuple[Path, PreTrainedModel]


def _engine(tiny: Tiny, **options: object) -> SpecMoE:
    return SpecMoE.from_pretrained(tiny[0], store=tiny[0] / "store", gamma=3, draft_experts=2, **options)  # type: ignore[arg-type]


def test_a_pass_cannot_be_changed() -> None:
    current = Pass("target", torch.ones(3, dtype=torch.bool))
    with pytest.raises(AttributeError):
        current.mode = "draft"  # type: ignore[misc]


def test_a_model_called_directly_after_generating_is_the_target(tiny: Tiny) -> None:
    ids, _ = prompts(2, shortest=7, longest=7)
    with _engine(tiny) as engine, torch.inference_mode():
        engine.generate(*prompts(3), max_new_tokens=8)
        logits = engine.model(ids).logits
        torch.testing.assert_close(logits, tiny[1](ids).logits, atol=1e-4, rtol=1e-4)


def test_a_pass_that_fails_leaves_no_state_behind(tiny: Tiny) -> None:
    with _engine(tiny, expert_budget="40%") as engine:
        source = SlowSource(engine.link._source, broken={(1, expert) for expert in range(8)})
        engine.link._source = source
        with pytest.raises(StoreError):
            engine.generate(*prompts(3), max_new_tokens=8)
        assert engine._state._pass is None
        assert isinstance(engine._state.recorder, NoRecorder)


def test_an_observer_sees_only_its_own_block(tiny: Tiny) -> None:
    seen: list[int] = []
    with _engine(tiny) as engine:
        with engine._state.observed_by(lambda layer, hidden, index: seen.append(len(index))):
            engine.generate(*prompts(2), max_new_tokens=1)
        during = len(seen)
        engine.generate(*prompts(2), max_new_tokens=1)
    assert during == 3  # one per layer
    assert len(seen) == during


@pytest.mark.parametrize("initial", ["prefill", "prefill-tail"])
def test_the_prompt_pass_counts_the_prompt_or_its_tail(initial: str) -> None:
    lengths = torch.tensor([3, INITIAL_TAIL, INITIAL_TAIL + 4])
    valid = torch.arange(int(lengths.max())) < lengths[:, None]
    current = prompt_pass(valid, SpecOptions.of(initial=initial))
    assert current.is_prompt
    assert current.mode == "target"
    assert torch.equal(current.valid, valid.flatten())
    if initial == "prefill":
        assert current.counted is None
    else:
        assert current.counted is not None
        counted = (current.counted & current.valid).view(valid.shape)
        assert counted.sum(1).tolist() == [3, INITIAL_TAIL, INITIAL_TAIL]
        assert not bool(counted[2, :4].any())
