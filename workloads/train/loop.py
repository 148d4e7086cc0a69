"""The training loop: Qwen3-MoE, bf16 autocast, AdamW with cosine decay, checkpoint on the way."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from workloads.train import sorted_experts
from workloads.train.publish import save_weights
from workloads.train.recipe import Recipe

Tokens = NDArray[np.uint16]


def build_model(recipe: Recipe) -> Qwen3MoeForCausalLM:
    """The recipe's model with freshly initialised float32 weights."""
    config = Qwen3MoeConfig(
        vocab_size=recipe.vocab_size,
        hidden_size=recipe.hidden_size,
        intermediate_size=4 * recipe.hidden_size,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.attention_heads,
        num_key_value_heads=recipe.key_value_heads,
        head_dim=recipe.head_dim,
        num_experts=recipe.experts,
        num_experts_per_tok=recipe.experts_per_token,
        moe_intermediate_size=recipe.expert_intermediate_size,
        max_position_embeddings=recipe.max_position_embeddings,
        router_aux_loss_coef=recipe.router_aux_loss_coef,
        norm_topk_prob=True,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    torch.manual_seed(recipe.seed)
    model = Qwen3MoeForCausalLM(config)
    model.set_experts_implementation(sorted_experts.register())
    return model


def _batch(tokens: Tokens, recipe: Recipe, generator: np.random.Generator) -> torch.Tensor:
    starts = generator.integers(0, len(tokens) - recipe.sequence_length - 1, recipe.sequences_per_step)
    rows = np.stack([tokens[s : s + recipe.sequence_length + 1] for s in starts])
    return torch.from_numpy(rows.astype(np.int64))  # [B, S + 1]


def _loss(model: Qwen3MoeForCausalLM, batch: torch.Tensor, with_aux: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean next-token cross entropy (nats per token), alone and with the load-balancing term."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(batch[:, :-1], use_cache=False, output_router_logits=with_aux)
    loss = F.cross_entropy(output.logits.flatten(0, 1).float(), batch[:, 1:].flatten())
    total = loss + model.config.router_aux_loss_coef * output.aux_loss if with_aux else loss
    return loss, total


@torch.no_grad()
def held_out_loss(model: Qwen3MoeForCausalLM, tokens: Tokens, recipe: Recipe, sequences: int = 200) -> float:
    """Mean cross entropy in nats per token over evenly spaced held-out windows."""
    starts = np.linspace(0, len(tokens) - recipe.sequence_length - 2, sequences).astype(int)
    model.eval()
    losses = []
    for group in np.array_split(starts, max(1, sequences // 20)):
        rows = np.stack([tokens[s : s + recipe.sequence_length + 1] for s in group]).astype(np.int64)
        losses.append((_loss(model, torch.from_numpy(rows), with_aux=False)[0].item(), len(group)))
    model.train()
    return sum(loss * n for loss, n in losses) / sum(n for _, n in losses)


def learning_rate(recipe: Recipe, step: int) -> float:
    """Linear warm-up, then cosine decay to ``final_learning_rate``."""
    if step < recipe.warmup_steps:
        return recipe.learning_rate * (step + 1) / recipe.warmup_steps
    progress = (step - recipe.warmup_steps) / max(1, recipe.steps - recipe.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return recipe.final_learning_rate + (recipe.learning_rate - recipe.final_learning_rate) * cosine


def train(recipe: Recipe, tokens: Tokens, held_out: Tokens, folder: Path) -> tuple[Qwen3MoeForCausalLM, dict[str, Any]]:
    """Train to ``recipe.steps``; writes ``training_log.jsonl`` and a bf16 snapshot into ``folder`` on the way."""
    model = build_model(recipe)
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    plain = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=recipe.learning_rate,
        betas=(0.9, 0.95),
        fused=True,
    )
    generator = np.random.default_rng(recipe.seed)
    started, recent = time.monotonic(), []
    loss_mean = float("nan")
    with (folder / "training_log.jsonl").open("w") as out:
        for step in range(recipe.steps):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(recipe, step)
            loss, total = _loss(model, _batch(tokens, recipe, generator), with_aux=True)
            optimizer.zero_grad(set_to_none=True)
            total.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.gradient_clip)
            optimizer.step()
            recent.append(loss.item())
            if (step + 1) % 50 == 0 or step + 1 == recipe.steps:
                seconds = time.monotonic() - started
                loss_mean = float(np.mean(recent[-50:]))
                row: dict[str, Any] = {
                    "step": step + 1,
                    "train_loss_nats": round(loss_mean, 4),
                    "elapsed_s": round(seconds, 1),
                    "train_tok_s": round((step + 1) * recipe.sequences_per_step * recipe.sequence_length / seconds),
                }
                if (step + 1) % 500 == 0 or step + 1 == recipe.steps:
                    row["held_out_loss_nats"] = round(held_out_loss(model, held_out, recipe), 4)
                    save_weights(model, folder)
                out.write(json.dumps(row) + "\n")
                out.flush()
                print(row, flush=True)
    model.eval()
    return model, {
        "train_loss_nats": loss_mean,
        "held_out_loss_nats": held_out_loss(model, held_out, recipe),
        "seconds": time.monotonic() - started,
        "training_tokens": recipe.steps * recipe.sequences_per_step * recipe.sequence_length,
    }
