"""Wrong budgets, devices and prompts are refused with the cause and the fix."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from specmoe import BudgetError, ExpertStore, SpecMoE, SpecMoEError
from tests.conftest import prompts


def test_a_budget_too_small_for_the_draft_is_refused(tiny: tuple[Path, PreTrainedModel], store: ExpertStore) -> None:
    with pytest.raises(BudgetError, match="12 draft experts and one in transit need"):
        SpecMoE.from_pretrained(
            tiny[0], store=store.path, gamma=2, draft_experts=4, expert_budget=12 * store.slot_bytes
        )


@pytest.mark.parametrize(
    ("budget_slots", "options"),
    [
        (12, {"draft_experts": 4}),
        (0.5, {"gamma": 0}),
        (1, {"draft_experts": 1}),
        (3, {"draft_experts": 4, "controller": "auto"}),
    ],
)
def test_a_budget_too_small_is_refused_before_the_store_is_written(
    budget_slots: float,
    options: dict[str, object],
    tiny: tuple[Path, PreTrainedModel],
    store: ExpertStore,
    tmp_path: Path,
) -> None:
    budget = int(budget_slots * store.slot_bytes)
    with pytest.raises(BudgetError, match="raise"):
        SpecMoE.from_pretrained(tiny[0], store=tmp_path / "store", **{"gamma": 2, "expert_budget": budget, **options})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": -1}, r"option gamma: .*\(given -1\)"),
        ({"draft_experts": 0}, r"option draft_experts: .*\(given 0\)"),
        ({"hot_decay": 2.0}, r"option hot_decay: .*\(given 2.0\)"),
        ({"expert_budget": "much"}, "is not a size"),
        ({"expert_budget": "5 furlongs"}, "unknown unit"),
        ({"expert_budget": 0}, "not positive"),
        ({"device": "tpu"}, "tpu"),
    ],
)
def test_options_out_of_range_are_refused(
    options: dict[str, object], message: str, tiny: tuple[Path, PreTrainedModel], store: ExpertStore
) -> None:
    with pytest.raises((ValueError, RuntimeError), match=message):
        SpecMoE.from_pretrained(tiny[0], store=store.path, **options)  # type: ignore[arg-type]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is present")
def test_cuda_without_a_gpu_is_refused(tiny: tuple[Path, PreTrainedModel]) -> None:
    with pytest.raises(ValueError, match="no CUDA GPU: use device='cpu'"):
        SpecMoE.from_pretrained(tiny[0], device="cuda")


def test_malformed_prompts_are_refused(tiny: tuple[Path, PreTrainedModel], store: ExpertStore) -> None:
    ids, mask = prompts(2)
    with SpecMoE.from_pretrained(tiny[0], store=store.path, gamma=0) as engine:
        with pytest.raises(ValueError, match="pad prompts on the left"):
            engine.generate(ids, mask.flip(1))
        with pytest.raises(ValueError, match="every row needs a token"):
            engine.generate(ids, torch.zeros_like(mask))
        with pytest.raises(ValueError, match="must both be"):
            engine.generate(ids, mask[:, 1:])
        for empty in (ids[:0], ids[:, :0]):
            with pytest.raises(ValueError, match="is empty: give at least one row"):
                engine.generate(empty)
        with pytest.raises(ValueError, match="leaves no room: ask for at least 1 new token"):
            engine.generate(ids, mask, max_new_tokens=0)


def test_a_second_call_while_one_runs_is_refused_and_the_first_is_unharmed(
    tiny: tuple[Path, PreTrainedModel], store: ExpertStore
) -> None:
    ids, mask = prompts(2)
    refused: list[str] = []
    with SpecMoE.from_pretrained(tiny[0], store=store.path, gamma=0) as engine:
        expected = engine.generate(ids, mask, max_new_tokens=3).sequences

        def second_call() -> None:
            with pytest.raises(SpecMoEError, match="already generating: wait for that call") as error:
                engine.generate(ids, mask, max_new_tokens=3)
            refused.append(str(error.value))

        def in_another_thread() -> None:
            thread = threading.Thread(target=second_call)
            thread.start()
            thread.join()

        output = engine.generate(ids, mask, max_new_tokens=3, on_first_token=in_another_thread)
        assert len(refused) == 1
        assert torch.equal(output.sequences, expected)
        engine.generate(ids, mask, max_new_tokens=1)


@pytest.mark.parametrize("token", [-1, None, 10**6])
def test_a_token_of_another_vocabulary_is_refused(token: int | None, tiny: tuple[Path, PreTrainedModel]) -> None:
    size = tiny[1].get_input_embeddings().num_embeddings
    token = size if token is None else token
    with SpecMoE.from_pretrained(tiny[0], store=tiny[0] / "store", gamma=0) as engine:
        with pytest.raises(ValueError, match=f"token {token} is not one of the model's {size}: use the tokenizer"):
            engine.generate(torch.tensor([[1, 2, token]]))
        engine.generate(torch.tensor([[token, 1, 2]]), torch.tensor([[0, 1, 1]]), max_new_tokens=1)
