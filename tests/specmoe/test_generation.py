"""``generate`` streams, limits, stops and seeds as documented."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from specmoe import SpecMoE
from tests.conftest import prompts, reference


def _engine(tiny: tuple[Path, PreTrainedModel], **options: Any) -> SpecMoE:
    return SpecMoE.from_pretrained(tiny[0], store=tiny[0] / "store", **{"gamma": 4, "draft_experts": 4, **options})


@pytest.mark.parametrize("do_sample", [False, True])
@pytest.mark.parametrize("stops", [False, True])
@pytest.mark.parametrize("gamma", [0, 4])
def test_streamed_tokens_are_the_returned_ones_in_order(
    gamma: int, stops: bool, do_sample: bool, tiny: tuple[Path, PreTrainedModel]
) -> None:
    ids, mask = prompts(4, seed=5)
    stop = list(range(40)) if stops else None
    streamed: list[list[int]] = [[] for _ in range(4)]
    with _engine(tiny, gamma=gamma) as engine:
        output = engine.generate(
            ids,
            mask,
            max_new_tokens=15,
            do_sample=do_sample,
            eos_token_id=stop,
            pad_token_id=96,
            on_tokens=lambda row, tokens: streamed[row].extend(tokens),
        )
    new = output.sequences[:, ids.shape[1] :].tolist()
    width = max(map(len, streamed))
    assert new == [row + [96] * (width - len(row)) for row in streamed]
    assert sum(map(len, streamed)) == output.stats.new_tokens
    for row in streamed:
        assert not stops or all(token >= 40 for token in row[:-1])
        assert len(row) == 15 or row[-1] < 40


def test_first_tokens_are_streamed_before_anything_is_drafted(tiny: tuple[Path, PreTrainedModel]) -> None:
    ids, mask = prompts(3)
    calls: list[tuple[int, int]] = []
    with _engine(tiny) as engine:
        engine.generate(ids, mask, max_new_tokens=8, on_tokens=lambda row, tokens: calls.append((row, len(tokens))))
    assert calls[:3] == [(0, 1), (1, 1), (2, 1)]
    assert max(count for _, count in calls) > 1, "accepted drafts come together"


def test_max_length_counts_the_padded_prompt_as_transformers_does(tiny: tuple[Path, PreTrainedModel]) -> None:
    ids, mask = prompts(3)
    expected = tiny[1].generate(ids, attention_mask=mask, max_length=20, do_sample=False, pad_token_id=0)
    with _engine(tiny) as engine:
        output = engine.generate(ids, mask, max_length=20)
    assert output.sequences.shape[1] == 20
    assert output.sequences.tolist() == expected.tolist()


def test_twenty_tokens_are_the_default_as_in_transformers(tiny: tuple[Path, PreTrainedModel]) -> None:
    ids, mask = prompts(2)
    with _engine(tiny) as engine:
        output = engine.generate(ids, mask)
    assert output.sequences.tolist() == reference(tiny[1], ids, mask, 20).tolist()


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"max_length": 12}, "max_length is 12, which leaves no room: ask for at least 1 new token"),
        ({"max_length": 3}, "max_length is 3, which leaves no room"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0, which leaves no room: ask for at least 1 new token"),
        ({"max_new_tokens": -5}, "max_new_tokens is -5"),
    ],
)
def test_limits_below_one_new_token_are_refused(
    limits: dict[str, int], message: str, tiny: tuple[Path, PreTrainedModel]
) -> None:
    ids, mask = prompts(2, shortest=12, longest=12)
    with _engine(tiny) as engine, pytest.raises(ValueError, match=message):
        engine.generate(ids, mask, **limits)  # type: ignore[arg-type]


def test_a_stop_token_inside_an_accepted_draft_ends_the_row_there(tiny: tuple[Path, PreTrainedModel]) -> None:
    """A draft by all experts is accepted completely, so stop tokens fall at every position of a draft."""
    ids, mask = prompts(1, seed=2)
    free = reference(tiny[1], ids, mask, 14)[0, ids.shape[1] :].tolist()
    with _engine(tiny, gamma=5, draft_experts=8, selection="random") as engine:
        for place, stop in enumerate(free):
            output = engine.generate(ids, mask, max_new_tokens=14, eos_token_id=stop, pad_token_id=0)
            assert output.sequences[0, ids.shape[1] :].tolist() == free[: free.index(stop) + 1], place
            assert output.stats.acceptance_rate in (None, 1.0)


def test_any_of_several_stop_tokens_ends_a_row(tiny: tuple[Path, PreTrainedModel]) -> None:
    ids, mask = prompts(5, seed=8)
    free = reference(tiny[1], ids, mask, 16)[:, ids.shape[1] :]
    stop = [int(free[0, 3]), int(free[1, 7]), int(free[2, 0])]
    expected = tiny[1].generate(
        ids, attention_mask=mask, max_new_tokens=16, do_sample=False, eos_token_id=stop, pad_token_id=0
    )
    with _engine(tiny) as engine:
        output = engine.generate(ids, mask, max_new_tokens=16, eos_token_id=stop, pad_token_id=0)
    assert output.sequences.tolist() == expected.tolist()


def test_the_configs_stop_and_pad_tokens_are_the_default(tiny: tuple[Path, PreTrainedModel]) -> None:
    ids, mask = prompts(4, seed=5)
    free = reference(tiny[1], ids, mask, 16)[:, ids.shape[1] :]
    with _engine(tiny) as engine:
        engine.model.generation_config.eos_token_id = int(free[0, 4])
        engine.model.generation_config.pad_token_id = 95
        stopped = engine.generate(ids, mask, max_new_tokens=16).sequences[0, ids.shape[1] :].tolist()
        unstopped = engine.generate(ids, mask, max_new_tokens=16, eos_token_id=None).sequences
    first = free[0].tolist().index(int(free[0, 4]))
    assert stopped[: first + 1] == free[0, : first + 1].tolist()
    assert set(stopped[first + 1 :]) <= {95}
    assert unstopped[:, ids.shape[1] :].tolist() == free.tolist()


def test_rows_that_finish_early_leave_the_batch(tiny: tuple[Path, PreTrainedModel]) -> None:
    ids, mask = prompts(4, seed=5)
    free = reference(tiny[1], ids, mask, 16)[:, ids.shape[1] :]
    stop = int(free[0, 4])
    ends = [row.index(stop) + 1 if stop in row else 16 for row in free.tolist()]
    with _engine(tiny, gamma=0) as engine:
        stats = engine.generate(ids, mask, max_new_tokens=16, eos_token_id=stop).stats
    assert [c.rows for c in stats.cycles] == [sum(end > step for end in ends) for step in range(1, max(ends))]
    assert stats.new_tokens == sum(ends)


def test_every_row_stopping_at_once_decodes_nothing(tiny: tuple[Path, PreTrainedModel]) -> None:
    ids, mask = prompts(3)
    first = reference(tiny[1], ids, mask, 1)[:, -1].tolist()
    with _engine(tiny) as engine:
        output = engine.generate(ids, mask, max_new_tokens=9, eos_token_id=first)
    assert output.sequences.shape[1] == ids.shape[1] + 1
    assert output.stats.cycles == []


def test_drafts_past_a_stop_are_not_counted(tiny: tuple[Path, PreTrainedModel]) -> None:
    """Counters by position exclude tokens past a row's end, so they agree with the tokens returned."""
    ids, mask = prompts(1, seed=2)
    free = reference(tiny[1], ids, mask, 14)[0, ids.shape[1] :].tolist()
    place = next(i for i in (2, 3, 4) if free.index(free[i]) == i)
    with _engine(tiny, gamma=8, draft_experts=8, selection="random") as engine:
        stats = engine.generate(ids, mask, max_new_tokens=14, eos_token_id=free[place]).stats
    assert sum(stats.accepted_by_position) == stats.decode_tokens == place


def test_a_row_alone_gives_what_it_gives_in_a_batch(tiny: tuple[Path, PreTrainedModel]) -> None:
    ids, mask = prompts(4, seed=9)
    with _engine(tiny) as engine:
        together = engine.generate(ids, mask, max_new_tokens=9).sequences[:, ids.shape[1] :].tolist()
        alone = [
            engine.generate(row[keep.bool()][None], max_new_tokens=9).sequences[0, -9:].tolist()
            for row, keep in zip(ids, mask, strict=True)
        ]
    assert together == alone


@pytest.mark.parametrize("choices", [{}, {"substitution": "random"}, {"selection": "random"}], ids=str)
def test_a_reset_engine_repeats_a_seed(choices: dict[str, Any], tiny: tuple[Path, PreTrainedModel]) -> None:
    ids, mask = prompts(3)
    with _engine(tiny, draft_experts=2, expert_budget="50%", **choices) as engine:
        runs = []
        for seed in (1, 1, 2):
            engine.reset()
            runs.append(engine.generate(ids, mask, max_new_tokens=20, do_sample=True, seed=seed))
    assert runs[0].sequences.tolist() == runs[1].sequences.tolist() != runs[2].sequences.tolist()
    assert runs[0].stats.accepted_by_position == runs[1].stats.accepted_by_position
    assert runs[0].stats.decode.link.moved_bytes == runs[1].stats.decode.link.moved_bytes


def test_the_options_seed_is_the_default(tiny: tuple[Path, PreTrainedModel]) -> None:
    ids, mask = prompts(2)
    sequences = []
    for options, call in (({"seed": 3}, {}), ({"seed": 3}, {}), ({"seed": 4}, {})):
        with _engine(tiny, **options) as engine:
            sequences.append(engine.generate(ids, mask, do_sample=True, **call).sequences.tolist())
    assert sequences[0] == sequences[1] != sequences[2]


def test_a_closed_engine_refuses_to_generate(tiny: tuple[Path, PreTrainedModel]) -> None:
    engine = _engine(tiny)
    engine.close()
    engine.close()  # closing twice is harmless
    caught: list[BaseException] = []

    def generate() -> None:
        try:
            engine.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=2)
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=generate, daemon=True)
    thread.start()
    thread.join(timeout=5)
    assert not thread.is_alive(), "generate after close hangs"
    assert "closed" in str(caught[0])
