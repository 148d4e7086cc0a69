"""The training loop: AdamW with cosine decay, regular snapshots; a stopped run goes on from the last one."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from workloads.train.architectures import build_model
from workloads.train.batches import Batch, TrainingData
from workloads.train.publish import save_weights
from workloads.train.recipe import Recipe
from workloads.train.routing import load_balancing

LOG_EVERY, HELD_OUT_EVERY = 50, 500
UNFINISHED = "unfinished.pt"


@dataclass
class _Progress:
    """Steps done, the latest losses, and the time they took in all runs."""

    step: int = 0
    losses: list[float] = field(default_factory=list)
    tokens: int = 0
    elapsed_s: float = 0.0
    cpu_s: float = 0.0


def train(recipe: Recipe, data: TrainingData, folder: Path) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Train for ``recipe.steps``; writes ``training_log.jsonl`` and bf16 snapshots into ``folder``.

    A run that was stopped is continued from its state in ``folder``, which a finished run deletes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model = build_model(recipe)
    optimizer = _optimizer(model, recipe)
    progress = _resumed(folder, model, optimizer)
    batches = data.batches(progress.step)
    wall_s, cpu_s = time.monotonic() - progress.elapsed_s, time.process_time() - progress.cpu_s
    with (folder / "training_log.jsonl").open("a" if progress.step else "w") as out:
        while progress.step < recipe.steps:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(recipe, progress.step)
            batch = next(batches)
            loss, total = _loss(model, batch, recipe, with_aux=True)
            optimizer.zero_grad(set_to_none=True)
            total.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.gradient_clip)
            optimizer.step()
            progress.step += 1
            progress.tokens += batch.tokens
            progress.losses = [*progress.losses, loss.item()][-LOG_EVERY:]
            last = progress.step == recipe.steps
            if progress.step % LOG_EVERY == 0 or last:
                progress.elapsed_s, progress.cpu_s = time.monotonic() - wall_s, time.process_time() - cpu_s
                row = _row(progress)
                if progress.step % HELD_OUT_EVERY == 0 or last:
                    row["held_out_loss_nats"] = round(held_out_loss(model, data, recipe), 4)
                    save_weights(model, recipe, folder)
                _write_state(folder, model, optimizer, progress)
                out.write(json.dumps(row) + "\n")
                out.flush()
                print(row, flush=True)
    model.eval()
    (folder / UNFINISHED).unlink(missing_ok=True)
    return model, {
        "train_loss_nats": float(np.mean(progress.losses)),
        "held_out_loss_nats": held_out_loss(model, data, recipe),
        "seconds": time.monotonic() - wall_s,
        "cpu_s": time.process_time() - cpu_s,
        "training_tokens": progress.tokens,
    }


@torch.no_grad()
def held_out_loss(model: PreTrainedModel, data: TrainingData, recipe: Recipe) -> float:
    """Mean cross entropy in nats per token of the held-out batches, each batch's mean weighted by its rows."""
    model.eval()
    losses = [(_loss(model, batch, recipe, with_aux=False)[0].item(), len(batch.targets)) for batch in data.held_out()]
    model.train()
    return sum(loss * rows for loss, rows in losses) / sum(rows for _, rows in losses)


def learning_rate(recipe: Recipe, step: int) -> float:
    """Linear warm-up, a plateau where the recipe has one, then cosine decay to ``final_learning_rate``; twice with a
    ``restart_step``, the second time from half the height and without warm-up and plateau.
    """
    end, high = recipe.restart_step or recipe.steps, recipe.learning_rate
    if step < recipe.warmup_steps:
        return high * (step + 1) / recipe.warmup_steps
    start = max(recipe.warmup_steps, round(recipe.plateau * end))
    if step >= end:
        start, end, high = end, recipe.steps, high / 2
    progress = max(0, step - start) / max(1, end - start)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return recipe.final_learning_rate + (high - recipe.final_learning_rate) * cosine


def _loss(model: PreTrainedModel, batch: Batch, recipe: Recipe, with_aux: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Weighted mean cross entropy (nats per token), alone and with the load-balancing term."""
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=_has_bfloat16()):
        output = model(**batch.inputs, use_cache=False, output_router_logits=with_aux)
    each = F.cross_entropy(output.logits.flatten(0, 1).float(), batch.targets.flatten(), reduction="none")
    counted = batch.weights.flatten()
    loss = (each * counted).sum() / counted.sum()
    if not with_aux:
        return loss, loss
    return loss, loss + recipe.router_aux_loss_coef * load_balancing(output, batch.valid, recipe)


def _has_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 matrices itself; elsewhere float32 is faster."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _optimizer(model: PreTrainedModel, recipe: Recipe) -> torch.optim.Optimizer:
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    plain = [p for p in model.parameters() if p.ndim < 2]
    return torch.optim.AdamW(
        [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=recipe.learning_rate,
        betas=(0.9, 0.95),
        fused=True,
    )


def _row(progress: _Progress) -> dict[str, Any]:
    return {
        "step": progress.step,
        "train_loss_nats": round(float(np.mean(progress.losses)), 4),
        "elapsed_s": round(progress.elapsed_s, 1),
        "cpu_s": round(progress.cpu_s, 1),
        "train_tok_s": round(progress.tokens / progress.elapsed_s),
    }


def _write_state(folder: Path, model: PreTrainedModel, optimizer: torch.optim.Optimizer, progress: _Progress) -> None:
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "progress": vars(progress)}
    partial = folder / f"{UNFINISHED}.partial"
    torch.save(state, partial)
    partial.replace(folder / UNFINISHED)


def _resumed(folder: Path, model: PreTrainedModel, optimizer: torch.optim.Optimizer) -> _Progress:
    """The progress of a stopped run in ``folder``, its state loaded into model and optimizer."""
    if not (folder / UNFINISHED).exists():
        return _Progress()
    state = torch.load(folder / UNFINISHED, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return _Progress(**state["progress"])
