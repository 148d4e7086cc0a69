"""Sampled output has the target's distribution exactly, whatever was drafted; a wrong rule is detected."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare
from transformers import PreTrainedModel, Qwen3MoeConfig, Qwen3MoeForCausalLM, Qwen3NextConfig, Qwen3NextForCausalLM

from specmoe import SpecMoE, request
from specmoe.sampling import Proposal, Sampling, longest_prefix
from tests.conftest import prompts, reference

VOCAB = 6
DRAWS = 40_000
GENUINE, WRONG = 1e-3, 1e-6
"""p-values: above the first a rule passes, below the second it is caught (seeds are fixed)."""
PROCESSING = [
    {},
    {"temperature": 0.7},
    {"temperature": 1.6, "top_k": 3},
    {"top_p": 0.8},
    {"temperature": 1.3, "top_k": 5, "top_p": 0.9},
]


class RedrawFromTarget(Sampling):
    """Wrong: a rejected token is replaced by a draw from p instead of from the residual of p over q."""

    def accept(self, proposal: Proposal, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if proposal.probs is None:  # nothing was drafted
            return super().accept(proposal, logits)
        target = self.probabilities(logits)
        p = target[:, :-1].gather(2, proposal.tokens[:, :, None]).squeeze(2)
        q = proposal.probs.gather(2, proposal.tokens[:, :, None]).squeeze(2)
        accepted = longest_prefix((torch.rand(p.shape, generator=self._generator) * q < p) & proposal.valid)
        return accepted, self._pick(target[torch.arange(len(accepted)), accepted])


class AcceptAlways(Sampling):
    """Wrong: every drafted token is accepted."""

    def accept(self, proposal: Proposal, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        target = self.probabilities(logits)
        return proposal.lengths, self._pick(target[torch.arange(len(target)), proposal.lengths])


def _p_value(drawn: torch.Tensor, expected: torch.Tensor) -> float:
    """Chi-square p of drawn cells (long [n]) against probabilities [cells]; rare cells are pooled."""
    counts = torch.bincount(drawn, minlength=len(expected)).double()
    if bool((counts[expected == 0] > 0).any()):
        return 0.0
    mean = expected.double() / expected.double().sum() * len(drawn)
    rare = mean < 5
    observed, means = counts[~rare].tolist(), mean[~rare].tolist()
    if float(mean[rare].sum()) >= 5:
        observed.append(float(counts[rare].sum()))
        means.append(float(mean[rare].sum()))
    means = [m * sum(observed) / sum(means) for m in means]
    return float(chisquare(observed, means).pvalue)


class Chain:
    """A target and a draft over a small vocabulary, each with logits [V, V] of the next token given the last."""

    def __init__(self, sampler: Sampling, start: int = 0) -> None:
        generator = torch.Generator().manual_seed(11)
        self.logits = torch.randn(VOCAB, VOCAB, generator=generator) * 1.5
        self.target = sampler.probabilities(self.logits)
        self.draft = sampler.probabilities(torch.randn(VOCAB, VOCAB, generator=generator) * 1.5)
        self.start = start
        self._generator = generator

    def step(self, table: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
        return torch.multinomial(table[last], 1, generator=self._generator).squeeze(1)

    def propose(self, gamma: int, lengths: torch.Tensor, looked_up: bool) -> Proposal:
        """Drawn from the draft; or looked up, which here is the last token plus one."""
        last = torch.full((DRAWS,), self.start)
        tokens, probs = [], []
        for _ in range(gamma):
            probs.append(self.draft[last])
            last = (last + 1) % VOCAB if looked_up else self.step(self.draft, last)
            tokens.append(last)
        return Proposal(torch.stack(tokens, 1), lengths, None if looked_up else torch.stack(probs, 1))

    def first_two(self, sampler: Sampling, gamma: int, ragged: bool, looked_up: bool) -> torch.Tensor:
        """The first two tokens emitted by draft, verify, accept: one cell of V * V per row, long [DRAWS]."""
        lengths = torch.arange(DRAWS) % (gamma + 1) if ragged else torch.full((DRAWS,), gamma)
        proposal = self.propose(gamma, lengths, looked_up)
        given = torch.cat([torch.full((DRAWS, 1), self.start), proposal.tokens], dim=1)
        accepted, next_token = sampler.accept(proposal, self.logits[given])
        assert bool((accepted <= lengths).all())
        emitted = torch.cat([proposal.tokens, next_token[:, None]], dim=1)
        emitted[torch.arange(DRAWS), accepted] = next_token
        second = torch.where(accepted > 0, emitted[:, 1], self.step(self.target, emitted[:, 0]))
        return emitted[:, 0] * VOCAB + second

    @property
    def pairs(self) -> torch.Tensor:
        """Exact probabilities of the first two tokens, [V * V]."""
        return (self.target[self.start][:, None] * self.target).flatten()


@pytest.mark.parametrize("processing", PROCESSING, ids=str)
@pytest.mark.parametrize("gamma", [1, 2, 4])
def test_the_rule_keeps_the_targets_distribution(gamma: int, processing: dict[str, float]) -> None:
    sampler = Sampling(**processing, seed=gamma)  # type: ignore[arg-type]
    chain = Chain(sampler)
    for ragged in (False, True):
        for looked_up in (False, True):
            drawn = chain.first_two(sampler, gamma, ragged, looked_up)
            assert _p_value(drawn // VOCAB, chain.target[chain.start]) > GENUINE, (ragged, looked_up)
            assert _p_value(drawn, chain.pairs) > GENUINE, (ragged, looked_up)


@pytest.mark.parametrize("wrong", [RedrawFromTarget, AcceptAlways])
@pytest.mark.parametrize("gamma", [1, 2, 4])
def test_a_wrong_rule_is_caught(wrong: type[Sampling], gamma: int) -> None:
    sampler = wrong(seed=gamma)
    chain = Chain(sampler)
    assert _p_value(chain.first_two(sampler, gamma, False, False), chain.pairs) < WRONG


@pytest.mark.parametrize("gamma", [1, 3])
def test_a_draft_equal_to_the_target_is_always_accepted(gamma: int) -> None:
    sampler = Sampling(seed=1)
    logits = torch.randn(500, gamma + 1, VOCAB)
    probs = sampler.probabilities(logits)
    tokens = torch.multinomial(probs[:, :gamma].reshape(-1, VOCAB), 1).view(500, gamma)
    accepted, _ = sampler.accept(Proposal(tokens, torch.full((500,), gamma), probs[:, :gamma]), logits)
    assert accepted.tolist() == [gamma] * 500


def test_a_token_of_target_probability_zero_is_never_accepted() -> None:
    sampler = Sampling(top_k=2, seed=0)
    logits = torch.tensor([0.0, 1.0, 2.0, 3.0]).expand(200, 2, 4)
    proposal = Proposal(torch.zeros(200, 1, dtype=torch.long), torch.ones(200, dtype=torch.long))
    accepted, next_token = sampler.accept(proposal, logits)
    assert accepted.tolist() == [0] * 200
    assert set(next_token.tolist()) == {2, 3}


def test_rows_that_propose_nothing_draw_from_the_target() -> None:
    sampler = Sampling(seed=0)
    proposal = Proposal(torch.empty(DRAWS, 0, dtype=torch.long), torch.zeros(DRAWS, dtype=torch.long))
    logits = torch.tensor([0.0, 1.0, 2.0]).expand(DRAWS, 1, 3)
    accepted, next_token = sampler.accept(proposal, logits)
    assert accepted.tolist() == [0] * DRAWS
    assert _p_value(next_token, sampler.probabilities(logits[0, 0])) > GENUINE


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": -1.0}, "temperature"),
        ({"top_k": -1}, "top_k is -1: use 0"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_p": -0.1}, "top_p"),
    ],
)
def test_sampling_values_out_of_range_are_refused(values: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sampling(**values)  # type: ignore[arg-type]


# End to end: a model of 12 words, whose exact probabilities transformers gives.

WORDS = 12
ROWS, CALLS = 2560, 8
CONFIGURATIONS = {
    "affinity, gamma 1": {"gamma": 1},
    "affinity, gamma 3": {"gamma": 3},
    "random": {"gamma": 3, "substitution": "random"},
    "drop": {"gamma": 3, "substitution": "drop"},
    "best-gate": {"gamma": 3, "substitution": "best-gate"},
    "low-bit copies": {"gamma": 3, "draft_pool": "low-bit", "draft_bits": 2},
    "lookup": {"gamma": 3, "drafter": "ngram", "ngram_min": 1},
    "lookup and draft": {"gamma": 3, "drafter": "ngram+pinned", "ngram_min": 2},
}
PROMPT = [3, 4, 5, 3, 4]
PROCESSED = {"temperature": 1.2, "top_k": 10, "top_p": 0.97}


WORDY = {
    "vocab_size": WORDS,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 8,
    "norm_topk_prob": True,
    "max_position_embeddings": 64,
    "eos_token_id": None,
    "pad_token_id": 0,
    "initializer_range": 0.3,
}


@pytest.fixture(scope="module")
def wordy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PreTrainedModel]:
    folder = tmp_path_factory.mktemp("wordy")
    torch.manual_seed(7)
    model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**WORDY)).float().eval()
    model.save_pretrained(folder)
    return folder, model


def _exact(model: PreTrainedModel) -> torch.Tensor:
    """Probabilities of the first three new tokens after the prompt, [WORDS ** 3]."""
    sampler = Sampling(**PROCESSED)  # type: ignore[arg-type]
    pairs = torch.cartesian_prod(torch.arange(WORDS), torch.arange(WORDS))
    ids = torch.cat([torch.tensor(PROMPT).expand(len(pairs), -1), pairs], dim=1)
    with torch.inference_mode():
        probs = sampler.probabilities(model(ids).logits[:, len(PROMPT) - 1 :])  # [W * W, 3, W]
    first = probs[torch.arange(len(pairs)), 0, pairs[:, 0]]
    second = probs[torch.arange(len(pairs)), 1, pairs[:, 1]]
    return (first[:, None] * second[:, None] * probs[:, 2]).flatten()


def _draw(wordy: tuple[Path, PreTrainedModel], **options: object) -> tuple[torch.Tensor, float]:
    """First three new tokens of ``CALLS * ROWS`` rows, each a cell of WORDS ** 3; and the last call's acceptance."""
    ids = torch.tensor([PROMPT] * ROWS)
    cells = []
    with SpecMoE.from_pretrained(wordy[0], store=wordy[0] / "store", **({"draft_experts": 2} | options)) as generator:
        for seed in range(CALLS):
            output = generator.generate(ids, max_new_tokens=5, do_sample=True, seed=seed, **PROCESSED)
            new = output.sequences[:, len(PROMPT) :]
            cells.append((new[:, 0] * WORDS + new[:, 1]) * WORDS + new[:, 2])
            rate = output.stats.acceptance_rate
    return torch.cat(cells), rate


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in ("lookup and draft", "low-bit copies") else pytest.mark.slow)
        for name in CONFIGURATIONS
    ],
)
def test_speculation_draws_what_the_reference_model_would(name: str, wordy: tuple[Path, PreTrainedModel]) -> None:
    _check_distribution(wordy, **CONFIGURATIONS[name])


@pytest.mark.slow
def test_speculation_of_a_hybrid_draws_what_the_reference_model_would(tmp_path: Path) -> None:
    """The recurrent state of a gated delta net goes back to the last accepted token."""
    torch.manual_seed(7)
    config = Qwen3NextConfig(
        **WORDY,
        layer_types=["linear_attention", "full_attention"],
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        linear_num_key_heads=1,
        linear_num_value_heads=2,
        shared_expert_intermediate_size=8,
    )
    model = Qwen3NextForCausalLM(config).float().eval()
    model.save_pretrained(tmp_path)
    _check_distribution((tmp_path, model), gamma=3)


def _check_distribution(model: tuple[Path, PreTrainedModel], **options: object) -> None:
    drawn, acceptance = _draw(model, **options)
    exact = _exact(model[1])
    assert 0.05 < acceptance < 0.95, "the rule must have both kept and refused"
    assert len(drawn) >= 20_000
    for cells, size in ((drawn // WORDS**2, WORDS), (drawn // WORDS, WORDS**2), (drawn, WORDS**3)):
        assert _p_value(cells, exact.view(size, -1).sum(dim=1)) > GENUINE


@pytest.mark.parametrize("wrong", [RedrawFromTarget, pytest.param(AcceptAlways, marks=pytest.mark.slow)])
def test_a_wrong_rule_is_caught_end_to_end(
    wrong: type[Sampling], wordy: tuple[Path, PreTrainedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request, "Sampling", wrong)
    drawn, _ = _draw(wordy, gamma=3)
    assert _p_value(drawn, _exact(wordy[1])) < WRONG


def _sampled(tiny: tuple[Path, PreTrainedModel], **choices: object) -> list[list[int]]:
    ids, mask = prompts(3)
    with SpecMoE.from_pretrained(tiny[0], store=tiny[0] / "store", gamma=3, draft_experts=3) as generator:
        output = generator.generate(ids, mask, max_new_tokens=12, do_sample=True, **choices)  # type: ignore[arg-type]
    sequences: list[list[int]] = output.sequences.tolist()
    return sequences


def test_a_seed_repeats_a_run_and_another_gives_another(tiny: tuple[Path, PreTrainedModel]) -> None:
    assert _sampled(tiny, seed=5) == _sampled(tiny, seed=5)
    assert _sampled(tiny, seed=5) != _sampled(tiny, seed=6)


@pytest.mark.parametrize("choices", [{"top_k": 1}, {"temperature": 1e-4}, {"top_p": 0.0}], ids=str)
def test_sampling_without_choice_is_greedy(choices: dict[str, float], tiny: tuple[Path, PreTrainedModel]) -> None:
    ids, mask = prompts(3)
    assert _sampled(tiny, seed=1, **choices) == reference(tiny[1], ids, mask, 12).tolist()


def test_bad_sampling_values_reach_the_caller_of_generate(tiny: tuple[Path, PreTrainedModel]) -> None:
    with pytest.raises(ValueError, match="top_k is -2"):
        _sampled(tiny, top_k=-2)


@given(st.lists(st.lists(st.integers(0, 3), min_size=4, max_size=4), min_size=1, max_size=5), st.data())
def test_acceptance_is_the_longest_agreeing_prefix(drafts: list[list[int]], data: st.DataObject) -> None:
    targets = [data.draw(st.lists(st.integers(0, 3), min_size=5, max_size=5)) for _ in drafts]
    accepted = longest_prefix(torch.tensor(drafts) == torch.tensor(targets)[:, :-1]).tolist()
    for draft, target, count in zip(drafts, targets, accepted, strict=True):
        assert draft[:count] == target[:count]
        assert count == 4 or draft[count] != target[count]


def test_accepting_an_empty_draft_is_zero() -> None:
    assert longest_prefix(torch.empty(2, 0, dtype=torch.bool)).tolist() == [0, 0]
