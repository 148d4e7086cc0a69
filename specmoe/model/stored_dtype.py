"""The dtype in which a checkpoint's experts rest on disk and cross the link; they are computed in another or the same.

Experts are stored only as what ``from_pretrained(dtype=...)`` would compute with: in the compute dtype, or in the
checkpoint's own where widening each value gives exactly that.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from specmoe.errors import OptionError
from specmoe.model.checkpoint import Checkpoint, build_shell
from specmoe.model.plan_checks import DTYPES

_WIDENED = {torch.bfloat16: torch.float32, torch.float16: torch.float32}
"""Dtypes whose every value the other has too."""


def choose(checkpoint: Checkpoint, dtype: torch.dtype, asked: torch.dtype | None = None) -> torch.dtype:
    """The dtype to store the experts of ``checkpoint`` in when they are computed in ``dtype``.

    ``asked`` None is the checkpoint's own dtype where widening it to ``dtype`` is exact, else ``dtype``: so are
    quantised experts, and those in several dtypes.

    Raises:
        OptionError: experts stored as asked would not be those that ``from_pretrained(dtype=...)`` gives.
    """
    own = _own(checkpoint)
    exact = own if own is not None and _WIDENED.get(own) == dtype else dtype
    if asked is None or asked in (exact, dtype):
        return asked or exact
    usable = " or ".join(dict.fromkeys([_name(exact), _name(dtype)]))
    held = f"are in {_name(own)}" if own else "are quantised or in several dtypes"
    raise OptionError(
        f"stored_dtype={_name(asked)} with dtype={_name(dtype)} would change the experts of {checkpoint.path}, which "
        f"{held}: use stored_dtype={usable}, or another dtype"
    )


def choose_for(path: Path, dtype: torch.dtype, asked: torch.dtype | None = None) -> torch.dtype:
    """``choose`` for a checkpoint folder; nothing is read but headers.

    Raises:
        UnsupportedModelError: a checkpoint that cannot be loaded.
        OptionError: as ``choose``.
    """
    return dtype if asked == dtype else choose(Checkpoint(path, build_shell(path, dtype)), dtype, asked)


def _own(checkpoint: Checkpoint) -> torch.dtype | None:
    """The one dtype of all expert tensors; None if they are quantised or have several."""
    groups = [group for module in checkpoint.expert_groups().values() for group in module]
    if any(group.dequantizes for group in groups):
        return None
    found = {DTYPES[stored.dtype] for group in groups for _, stored in group.all_sources}
    return found.pop() if len(found) == 1 else None


def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")
