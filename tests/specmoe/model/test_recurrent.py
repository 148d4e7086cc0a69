"""Gated delta nets in a ragged cache: rows equal rows run alone, and rejected tokens leave no trace in the state.

Restoring a state moves no expert byte and runs no layer again.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen3_5MoeForConditionalGeneration
from transformers.cache_utils import DynamicCache

from specmoe import SpecMoE
from specmoe.model import families as adapters
from specmoe.model.kv_cache import RaggedCache
from specmoe.model.recurrent import LayerState, RecurrentLayer
from tests import families
from tests.conftest import VOCAB, build, prompts, reference

HYBRIDS = ["qwen3_next", "qwen3_5_moe_text", "lara_mini"]


@pytest.fixture(scope="module", params=HYBRIDS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> PreTrainedModel:
    """A tiny random model with its gated delta nets replaced."""
    model = families.build(request.param, tmp_path_factory.mktemp("model"))
    adapters.adapt(model)
    return model.eval()


def _forward(
    model: PreTrainedModel, cache: RaggedCache, ids: torch.Tensor, lengths: list[int] | None = None
) -> torch.Tensor:
    """Logits [B, Q, V]; ``lengths`` of prompts that are padded on the right."""
    padding = None if lengths is None else torch.arange(ids.shape[1]) >= torch.tensor(lengths)[:, None]
    with torch.inference_mode():
        logits: torch.Tensor = model(
            input_ids=ids,
            attention_mask=cache.attention_mask(ids.shape[1], model.dtype, boolean=True, padding=padding),
            position_ids=cache.lengths.positions(ids.shape[1]),
            cache=cache,
            use_cache=True,
        ).logits
    return logits


def _prompt(model: PreTrainedModel, rows: list[list[int]]) -> tuple[RaggedCache, torch.Tensor]:
    """A cache after the prompts ``rows``, and the logits of each row's last token, [B, V]."""
    cache, lengths = RaggedCache(model.config, len(rows), 60, torch.device("cpu")), [len(row) for row in rows]
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
    logits = _forward(model, cache, ids, lengths)
    cache.commit(torch.tensor(lengths))
    return cache, logits[torch.arange(len(rows)), torch.tensor(lengths) - 1]


def _step_by_step(model: PreTrainedModel, prompt: list[int], tokens: list[int]) -> tuple[torch.Tensor, DynamicCache]:
    """transformers' logits of the prompt's last token and of each further token, and its cache at the end."""
    cache, logits = DynamicCache(config=model.config), []
    with torch.inference_mode():
        for ids in (prompt, *([token] for token in tokens)):
            logits.append(model(input_ids=torch.tensor([ids]), cache=cache, use_cache=True).logits[0, -1])
    return torch.stack(logits), cache


def _states(cache: Any) -> list[LayerState]:
    return [
        LayerState(layer.conv_states[0], layer.recurrent_states[0])
        for layer in cache.layers
        if hasattr(layer, "recurrent_states")
    ]


def _close(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal but for rounding, which the norms of random models amplify; other tokens change logits by about 1."""
    torch.testing.assert_close(found, expected, atol=5e-3, rtol=1e-3)


def _same_states(cache: RaggedCache, row: int, expected: DynamicCache) -> None:
    states = _states(cache)
    assert states
    for found, right in zip(states, _states(expected), strict=True):
        _close(found.conv[row], right.conv[0])
        _close(found.recurrent[row], right.recurrent[0])


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2, 3))])
def test_ragged_rows_equal_transformers_decoding_of_each_row_alone(seed: int, model: PreTrainedModel) -> None:
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int, *shape: int) -> list[Any]:
        numbers: list[Any] = torch.randint(low, high, shape, generator=generator).tolist()
        return numbers

    rows = [draw(1, VOCAB, length) for length in draw(1, 10, 3)]
    cache, logits = _prompt(model, rows)
    kept: list[list[int]] = [[] for _ in rows]
    for queries in (3, 1, 5):
        ids = draw(1, VOCAB, 3, queries)
        found = _forward(model, cache, torch.tensor(ids))
        accepted = draw(0, queries + 1, 3)
        cache.commit(torch.tensor(accepted))
        for row, prompt in enumerate(rows):
            expected, _ = _step_by_step(model, prompt, kept[row] + ids[row])
            _close(found[row], expected[-queries:])
            _close(logits[row], expected[0])
            kept[row] += ids[row][: accepted[row]]
    for row, prompt in enumerate(rows):
        _same_states(cache, row, _step_by_step(model, prompt, kept[row])[1])


def test_accepted_tokens_alone_reach_the_state(model: PreTrainedModel) -> None:
    cache, _ = _prompt(model, [[5, 6, 7], [8, 9]])
    _forward(model, cache, torch.tensor([[10, 11, 12], [13, 14, 15]]))
    cache.commit(torch.tensor([1, 3]))
    _same_states(cache, 0, _step_by_step(model, [5, 6, 7], [10])[1])
    _same_states(cache, 1, _step_by_step(model, [8, 9], [13, 14, 15])[1])


def test_a_provisional_block_leaves_the_state_as_it_was(model: PreTrainedModel) -> None:
    cache, _ = _prompt(model, [[5, 6, 7], [8, 9]])
    before = [LayerState(state.conv.clone(), state.recurrent.clone()) for state in _states(cache)]
    with cache.provisional():
        for token in (20, 21, 22):
            _forward(model, cache, torch.tensor([[token], [token]]))
            cache.commit(torch.tensor([1, 1]))
        assert not torch.equal(_states(cache)[0].recurrent, before[0].recurrent)
    assert cache.lengths.values.tolist() == [3, 2]
    for found, expected in zip(_states(cache), before, strict=True):
        assert torch.equal(found.conv, expected.conv)
        assert torch.equal(found.recurrent, expected.recurrent)


def test_selected_rows_keep_their_state(model: PreTrainedModel) -> None:
    cache, _ = _prompt(model, [[5, 6, 7], [8, 9], [11]])
    cache.select(torch.tensor([2, 0]))
    _same_states(cache, 0, _step_by_step(model, [11], [])[1])
    _same_states(cache, 1, _step_by_step(model, [5, 6, 7], [])[1])


def test_restoring_moves_no_expert_and_runs_no_layer_again(tmp_path: Path) -> None:
    """Every linear layer and every experts module runs once per pass, and bytes equal the misses of target passes."""
    build("qwen3-next", tmp_path / "model")
    ids, mask = prompts(3)
    calls: Counter[str] = Counter()
    with SpecMoE.from_pretrained(
        tmp_path / "model", store=tmp_path / "store", gamma=4, draft_experts=2, placement="on-demand"
    ) as engine:
        for name, module in engine.model.named_modules():  # the model itself has the name ""
            if not name or name.endswith((".linear_attn", ".in_proj_qkvz", ".out_proj", ".experts")):
                module.register_forward_hook(lambda *_, name=name: calls.update([name]))
        stats = engine.generate(ids, mask, max_new_tokens=12).stats
        stride = engine.store.slot_bytes
    drafted, accepted = sum(stats.drafted_by_position), sum(stats.accepted_by_position)
    assert 0 < accepted < drafted, "some drafts must be rejected"
    assert len(calls) == 1 + 2 * 3 + 3, "the model, two linear layers with two projections, and three experts modules"
    passes = 1 + stats.target_passes + sum(cycle.gamma for cycle in stats.cycles)
    assert set(calls.values()) == {passes}
    misses = stats.decode.experts.requests - stats.decode.experts.hits
    assert stats.decode.link.moved_bytes == misses * stride


def test_rows_that_stop_early_leave_the_others_exact(tmp_path: Path) -> None:
    """With a prefetcher, a draft length that the controller changes, and stop tokens."""
    model = build("qwen3-next", tmp_path / "model")
    ids, mask = prompts(4)
    free = reference(model, ids, mask, 16)
    stop = int(free[1, ids.shape[1] + 5])
    expected = model.generate(
        ids, attention_mask=mask, max_new_tokens=16, do_sample=False, eos_token_id=stop, pad_token_id=0
    )
    options = {"gamma": 4, "draft_experts": 2, "controller": "auto", "prefetch": "draft", "drafter": "ngram+pinned"}
    with SpecMoE.from_pretrained(
        tmp_path / "model", store=tmp_path / "store", expert_budget="60%", **options
    ) as engine:
        output = engine.generate(ids, mask, max_new_tokens=16, eos_token_id=stop, pad_token_id=0)
    assert output.sequences.tolist() == expected.tolist()


@pytest.mark.slow
@pytest.mark.parametrize("family", HYBRIDS)
def test_prompts_of_several_chunks_and_long_outputs_are_exact(family: str, tmp_path: Path) -> None:
    """The rule for prompts works in chunks of 64 tokens."""
    model = families.build(family, tmp_path / "model")
    ids, mask = prompts(4, seed=3, shortest=1, longest=140)
    with SpecMoE.from_pretrained(tmp_path / "model", store=tmp_path / "store", gamma=4, draft_experts=2) as engine:
        output = engine.generate(ids, mask, max_new_tokens=60, eos_token_id=None, pad_token_id=0)
    assert output.sequences.tolist() == reference(model, ids, mask, 60).tolist()


def test_only_recurrent_layers_have_a_state(model: PreTrainedModel) -> None:
    cache = RaggedCache(model.config, 1, 10, torch.device("cpu"))
    kinds = [isinstance(layer, RecurrentLayer) for layer in cache.layers]
    assert kinds == [kind == "linear_attention" for kind in model.config.layer_types]


def test_the_adapted_model_still_generates_with_transformers(model: PreTrainedModel) -> None:
    ids, mask = prompts(3)
    original = AutoModelForCausalLM.from_config(model.config).eval()
    original.load_state_dict(model.state_dict())
    assert torch.equal(reference(model, ids, mask, 8), reference(original, ids, mask, 8))


def test_the_text_model_of_a_vision_language_checkpoint_is_exact(tmp_path: Path) -> None:
    """Published Qwen3.5-MoE checkpoints also hold a vision tower and a multi-token-prediction layer."""
    torch.manual_seed(0)
    whole = Qwen3_5MoeForConditionalGeneration(families.tiny_config("qwen3_5_moe")).float()
    with torch.no_grad():
        for parameter in whole.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    whole.save_pretrained(tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    save_file(load_file(file) | {"mtp.fc.weight": torch.zeros(2, 2)}, file, metadata={"format": "pt"})
    text = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    ids, mask = prompts(3)
    with SpecMoE.from_pretrained(tmp_path / "model", store=tmp_path / "store", gamma=3, draft_experts=2) as engine:
        output = engine.generate(ids, mask, max_new_tokens=8)
    assert torch.equal(output.sequences, reference(text, ids, mask, 8))
