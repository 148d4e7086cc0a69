"""Models in NLLB-MoE's and Llama 4's own classes are trained as these compute, saved in their layout and widened."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer, GenerationConfig
from transformers.models.llama4.modeling_llama4 import Llama4TextMoe
from transformers.models.nllb_moe.modeling_nllb_moe import NllbMoeSparseMLP

from workloads import inflate
from workloads.train import loop, prompts, publish
from workloads.train.architectures import build_model, load_trained
from workloads.train.corpus import Corpus, Pair
from workloads.train.paper_classes import Llama4MoeBlock, NllbMoeBlock
from workloads.train.prepare import prepare
from workloads.train.recipe import LLAMA4_LIKE, NLLB_MOE_LIKE, Recipe

NLLB = replace(
    NLLB_MOE_LIKE,
    vocab_size=320,
    hidden_size=32,
    head_dim=8,
    experts=8,
    expert_intermediate_size=12,
    dense_intermediate_size=12,
    layers=6,
    encoder_layers=2,
    sparse_step=2,
    sequences_per_step=8,
    steps=60,
    warmup_steps=5,
)
LLAMA4 = replace(
    LLAMA4_LIKE,
    vocab_size=320,
    hidden_size=32,
    head_dim=8,
    layers=4,
    experts=4,
    expert_intermediate_size=12,
    shared_expert_intermediate_size=12,
    attention_chunk_size=4,
)


class RoutedBlock(nn.Module):
    """transformers' block with its experts given the indices and weights of the router's two choices."""

    def __init__(self, block: NllbMoeSparseMLP) -> None:
        super().__init__()
        self.block = block

    def forward(self, hidden_states: torch.Tensor, padding_mask: torch.Tensor | None = None) -> torch.Tensor:
        """[B, S, H] -> [B, S, H]."""
        x = hidden_states.flatten(0, 1)
        weights, index = self.block.router(x, padding_mask)[1].topk(2, dim=-1)
        out: torch.Tensor = self.block.experts(x, index, weights)
        return out.view_as(hidden_states)


def _sharpened(module: nn.Module) -> None:
    """Larger weights, so that routing and experts matter, and values that bfloat16 holds."""
    with torch.no_grad():
        for parameter in module.parameters():  # a block of its own has experts that nothing has initialised
            parameter.nan_to_num_(0.0).clamp_(-1, 1).add_(torch.randn_like(parameter) * 0.1).copy_(parameter.bfloat16())


def _ids() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    ids, mask = torch.randint(6, 320, (3, 9)), torch.ones(3, 9, dtype=torch.long)
    ids[1, 6:], mask[1, 6:] = 1, 0
    return ids, mask


def _gradients(block: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x = x.clone().requires_grad_()
    out = block(x)
    out = (out[0] if isinstance(out, tuple) else out).view_as(x)
    out.square().sum().backward()
    assert x.grad is not None
    router = block.block.router if isinstance(block, RoutedBlock) else block.router
    weight = router.classifier.weight if hasattr(router, "classifier") else router.weight
    return out.detach(), x.grad, weight.grad.clone()


def test_the_nllb_moe_block_equals_the_classs_experts_in_value_and_gradient() -> None:
    torch.manual_seed(0)
    original = NllbMoeSparseMLP(build_model(NLLB).config, ffn_dim=12)
    _sharpened(original)
    x = torch.randn(2, 10, 32)
    fast = _gradients(NllbMoeBlock(original), x)
    original.zero_grad()
    for ours, theirs in zip(fast, _gradients(RoutedBlock(original), x), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_the_llama4_block_equals_the_class_in_value_and_gradient() -> None:
    torch.manual_seed(0)
    original = Llama4TextMoe(build_model(LLAMA4).config)
    _sharpened(original)
    x = torch.randn(2, 10, 32)
    fast = _gradients(Llama4MoeBlock(original), x)
    original.zero_grad()
    for ours, theirs in zip(fast, _gradients(original, x), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_an_expert_takes_its_capacity_in_training_and_every_token_in_evaluation() -> None:
    torch.manual_seed(0)
    block = NllbMoeBlock(NllbMoeSparseMLP(build_model(replace(NLLB, expert_capacity=3)).config, ffn_dim=12))
    nn.init.normal_(block.fc2_bias)
    x = torch.randn(1, 1, 32).expand(1, 10, 32)  # ten tokens with the same two experts
    evaluated, trained = block.eval()(x), block.train()(x)
    torch.testing.assert_close(trained[0, :3], evaluated[0, :3])
    assert evaluated[0, 3:].abs().sum() > 0
    assert trained[0, 3:].abs().sum() == 0
    torch.testing.assert_close(block.eval()(x), evaluated)


def test_saved_translators_give_the_same_logits_in_their_own_class(tmp_path: Path) -> None:
    model = build_model(NLLB).eval()
    _sharpened(model)
    publish.save_weights(model, NLLB, tmp_path)
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert type(loaded).__name__ == "NllbMoeForConditionalGeneration"
    assert loaded.config.experts_follow_router is True
    for side in (loaded.model.encoder, loaded.model.decoder):
        for layer in side.layers:
            layer.ffn = RoutedBlock(layer.ffn) if layer.is_sparse else layer.ffn
    ids, mask = _ids()
    with torch.inference_mode():
        outputs = [m(ids, attention_mask=mask, decoder_input_ids=ids[:, :5]).logits for m in (model, loaded)]
        again = load_trained(NLLB, tmp_path)(ids, attention_mask=mask, decoder_input_ids=ids[:, :5]).logits
    torch.testing.assert_close(*outputs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(again, outputs[0], atol=1e-5, rtol=1e-5)


def test_a_translators_batch_gives_what_its_rows_give_alone(tmp_path: Path) -> None:
    model = build_model(NLLB).eval()
    _sharpened(model)
    ids, mask = _ids()
    with torch.inference_mode():
        together = model(ids, attention_mask=mask, decoder_input_ids=ids[:, :5]).logits[1]
        alone = model(ids[1:2, :6], decoder_input_ids=ids[1:2, :5]).logits[0]
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_a_saved_llama4_gives_the_same_logits_in_its_own_class(tmp_path: Path) -> None:
    model = build_model(LLAMA4).eval()
    _sharpened(model)
    publish.save_weights(model, LLAMA4, tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert type(loaded).__name__ == "Llama4ForCausalLM"
    assert loaded.config.layer_types == ["chunked_attention"] * 3 + ["full_attention"]
    with torch.inference_mode():
        torch.testing.assert_close(loaded(_ids()[0]).logits, model(_ids()[0]).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("recipe", [NLLB, LLAMA4], ids=lambda recipe: recipe.architecture)
def test_inflation_keeps_logits_and_multiplies_expert_bytes(recipe: Recipe, tmp_path: Path) -> None:
    model = build_model(recipe)
    _sharpened(model)
    publish.save_weights(model, recipe, tmp_path / "narrow")
    wide = inflate.inflated(tmp_path / "narrow", tmp_path / "wide", 4)
    ids, mask = _ids()
    inputs = {"input_ids": ids, "attention_mask": mask}
    inputs |= {"decoder_input_ids": ids[:, :5]} if recipe.encoder_layers else {}
    narrow_model, wide_model = (load_trained(recipe, folder) for folder in (tmp_path / "narrow", wide))
    with torch.inference_mode():
        torch.testing.assert_close(narrow_model(**inputs).logits, wide_model(**inputs).logits, atol=1e-4, rtol=1e-4)
    assert _expert_weights(wide_model) == 4 * _expert_weights(narrow_model)


def _expert_weights(model: nn.Module) -> int:
    """Numbers in the routed experts' matrices."""
    matrices = ("fc1_weight", "fc2_weight", "experts.gate_up_proj", "experts.down_proj")
    return sum(p.numel() for name, p in model.named_parameters() if name.endswith(matrices))


@pytest.mark.slow
def test_a_short_run_publishes_a_translator_with_its_translations(tmp_path: Path) -> None:
    words = ("opening ouvrir", "file fichier", "page page")
    messages = [
        tuple(" ".join(side) for side in zip(*(word.split() for word in chosen), strict=True))
        for chosen in itertools.product(words, repeat=6)
    ]
    documents = [f"<en> {english} <fr> {french}" for english, french in messages]
    pairs = [Pair(f"<en> {english} <fr>", french, "p", "MIT") for english, french in messages[::4]]
    corpus = Corpus(documents, documents[::4], "here", "MIT", "0" * 64, ("<en>", "<fr>"), pairs)
    tokenizer, data = prepare(NLLB, corpus)
    tokenizer.save_pretrained(tmp_path)
    assert prompts.write_prompts(corpus, tokenizer, tmp_path / "p.jsonl", seed=0, tagged=False) > 100
    _, result = loop.train(NLLB, data, tmp_path)
    publish.publish(NLLB, corpus, tokenizer, data, result, tmp_path / "p.jsonl", tmp_path)
    assert result["held_out_loss_nats"] < 2.5
    page = (tmp_path / "README.md").read_text()
    assert "NllbMoeForConditionalGeneration" in page
    assert "2 encoder and 4 decoder layers" in page
    assert "<en>" not in (tmp_path / "p.jsonl").read_text()
    card = json.loads((tmp_path / "card.json").read_text())
    assert [layer["layer"] for layer in card["routing"]] == [1, 3, 5]
    assert abs(card["prompts_loss_nats"] - result["held_out_loss_nats"]) < 0.2
    settings = GenerationConfig.from_pretrained(tmp_path)
    code = AutoTokenizer.from_pretrained(tmp_path).convert_tokens_to_ids("fra_Latn")
    assert (settings.forced_bos_token_id, settings.decoder_start_token_id) == (code, 2)
