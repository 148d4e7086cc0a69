"""Names the weights that make a model's logits NaN; transformers loads such weights, and so does this engine."""

from __future__ import annotations

import warnings

import torch
from transformers import PreTrainedModel


def warn_of_nan(model: PreTrainedModel, logits: torch.Tensor) -> None:
    """Warn if logits [..., V] hold NaN; only then the loaded weights are searched for the first that explains it."""
    if not bool(logits.isnan().any()):
        return
    loaded = ((name, p) for name, p in model.named_parameters() if not p.is_meta and p.is_floating_point())
    bad = next((name for name, p in loaded if not bool(p.isfinite().all())), None)
    cause = f"{bad} holds NaN or infinite values: download the checkpoint again" if bad is not None else _NO_WEIGHT
    warnings.warn(f"the logits of {type(model).__name__} are NaN, {cause}", stacklevel=3)


_NO_WEIGHT = "though all its loaded weights are finite: use a wider dtype"
