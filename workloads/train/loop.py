"""The training loop: bf16 autocast, AdamW with cosine decay, regular snapshots."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from workloads.train.architectures import build_model
from workloads.train.publish import save_weights
from workloads.train.recipe import Recipe
from workloads.train.tokens import Stream


def _rows(stream: Stream, starts: np.ndarray, recipe: Recipe) -> tuple[torch.Tensor, torch.Tensor]:
    """Windows of the stream: token ids long [B, S + 1] and the weight of each in the loss, float [B, S + 1]."""
    index = starts[:, None] + np.arange(recipe.sequence_length + 1)
    return torch.from_numpy(stream.ids[index].astype(np.int64)), torch.from_numpy(stream.weights[index])


def _loss(
    model: PreTrainedModel, rows: tuple[torch.Tensor, torch.Tensor], with_aux: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weighted mean next-token cross entropy (nats per token), alone and with the load-balancing term."""
    ids, weights = rows
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(ids[:, :-1], use_cache=False, output_router_logits=with_aux)
    each = F.cross_entropy(output.logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none")
    counted = weights[:, 1:].flatten()
    loss = (each * counted).sum() / counted.sum()
    total = loss + model.config.router_aux_loss_coef * output.aux_loss if with_aux else loss
    return loss, total


@torch.no_grad()
def held_out_loss(model: PreTrainedModel, stream: Stream, recipe: Recipe, sequences: int = 200) -> float:
    """Mean cross entropy in nats per token, weighted as in training, over evenly spaced held-out windows."""
    starts = np.linspace(0, len(stream) - recipe.sequence_length - 2, sequences).astype(int)
    model.eval()
    losses = []
    for group in np.array_split(starts, max(1, sequences // 20)):
        losses.append((_loss(model, _rows(stream, group, recipe), with_aux=False)[0].item(), len(group)))
    model.train()
    return sum(loss * n for loss, n in losses) / sum(n for _, n in losses)


def learning_rate(recipe: Recipe, step: int) -> float:
    """Linear warm-up, then cosine decay to ``final_learning_rate``."""
    if step < recipe.warmup_steps:
        return recipe.learning_rate * (step + 1) / recipe.warmup_steps
    progress = (step - recipe.warmup_steps) / max(1, recipe.steps - recipe.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return recipe.final_learning_rate + (recipe.learning_rate - recipe.final_learning_rate) * cosine


def train(recipe: Recipe, text: Stream, held_out: Stream, folder: Path) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Train for ``recipe.steps``; writes ``training_log.jsonl`` and bf16 snapshots into ``folder``."""
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
    recent: list[float] = []
    tokens_per_step = recipe.sequences_per_step * recipe.sequence_length
    started_s, cpu_before_s = time.monotonic(), time.process_time()
    with (folder / "training_log.jsonl").open("w") as out:
        for step in range(recipe.steps):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(recipe, step)
            starts = generator.integers(0, len(text) - recipe.sequence_length - 1, recipe.sequences_per_step)
            loss, total = _loss(model, _rows(text, starts, recipe), with_aux=True)
            optimizer.zero_grad(set_to_none=True)
            total.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.gradient_clip)
            optimizer.step()
            recent.append(loss.item())
            last = step + 1 == recipe.steps
            if (step + 1) % 50 == 0 or last:
                seconds = time.monotonic() - started_s
                row: dict[str, Any] = {
                    "step": step + 1,
                    "train_loss_nats": round(float(np.mean(recent[-50:])), 4),
                    "elapsed_s": round(seconds, 1),
                    "cpu_s": round(time.process_time() - cpu_before_s, 1),
                    "train_tok_s": round((step + 1) * tokens_per_step / seconds),
                }
                if (step + 1) % 500 == 0 or last:
                    row["held_out_loss_nats"] = round(held_out_loss(model, held_out, recipe), 4)
                    save_weights(model, folder)
                out.write(json.dumps(row) + "\n")
                out.flush()
                print(row, flush=True)
    model.eval()
    return model, {
        "train_loss_nats": float(np.mean(recent[-50:])),
        "held_out_loss_nats": held_out_loss(model, held_out, recipe),
        "seconds": time.monotonic() - started_s,
        "cpu_s": time.process_time() - cpu_before_s,
        "training_tokens": recipe.steps * tokens_per_step,
    }
