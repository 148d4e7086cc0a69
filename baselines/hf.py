"""What adapters over a transformers model share: the timed greedy call, and loading without experts."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from transformers import PreTrainedModel, StoppingCriteria, StoppingCriteriaList

from baselines.contract import Counters, Generation, NotSupported, Request, Setting, SystemOptions
from specmoe.model.checkpoint import Checkpoint, build_shell
from specmoe.model.convert import open_or_build

Experts = Literal["grouped_mm", "batched_mm", "eager"]


class _FirstToken:
    """A streamer that only reports when the first new token is there; transformers puts the prompt first."""

    def __init__(self, report: Callable[[], None]) -> None:
        self._report, self._puts = report, 0

    def put(self, value: torch.Tensor) -> None:
        self._puts += 1
        if self._puts == 2:
            self._report()

    def end(self) -> None:
        pass


class _OwnLengths(StoppingCriteria):
    """Ends each row at its own number of new tokens."""

    eos_token_id = None  # transformers feeds ended rows padding only where a criterion has this attribute

    def __init__(self, request: Request, device: torch.device) -> None:
        self._ends = request.input_ids.shape[1] + torch.tensor(request.lengths, device=device)

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return self._ends <= input_ids.shape[1]  # bool [B]


def greedy(model: Any, request: Request) -> Generation:
    """``transformers``' own greedy loop; rows end at their own length, as those do that meet a stop token.

    An ended row stays in the batch until the last one ends, and is fed padding: that is what transformers does.
    """
    sequences = model.generate(
        input_ids=request.input_ids.to(model.device),
        attention_mask=request.attention_mask.to(model.device),
        max_new_tokens=request.new_tokens,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        streamer=_FirstToken(request.on_prefill_done),
        stopping_criteria=StoppingCriteriaList([_OwnLengths(request, model.device)]),
    )
    new_ids = sequences[:, request.input_ids.shape[1] :].cpu()
    return Generation(request.cut(new_ids), Counters(decode_steps=request.new_tokens - 1, tokens_per_step=1.0))


class GreedySystem:
    """The shape of an adapter whose whole state is one transformers model.

    A subclass gives its card, its options and ``prepare``, which sets ``_model``; ``build`` makes the expert store.
    """

    Options: ClassVar[type[SystemOptions]] = SystemOptions

    def __init__(self, options: Any) -> None:
        self.options = options
        self._model: Any = None

    def build(self, setting: Setting) -> None:
        open_or_build(setting.model_path, setting.store_path, setting.dtype)

    def generate(self, request: Request) -> Generation:
        return greedy(self._model, request)

    def close(self) -> None:
        self._model = None


def shell_without_experts(setting: Setting, device: torch.device) -> PreTrainedModel:
    """The model with everything but its experts on ``device``; those are still on ``meta``."""
    model = build_shell(setting.model_path)
    Checkpoint(setting.model_path, model).load_non_experts(setting.dtype, device)
    return model


def check_room(setting: Setting, nbytes: int, what: str) -> None:
    """Refuse what the kernel would kill: ``nbytes`` more than this process holds now, against its limit.

    Mapped files are left out of what it holds: the kernel drops them before it kills.

    Raises:
        NotSupported: they do not fit.
    """
    status = Path("/proc/self/status")
    found = re.search(r"^RssAnon:\s*(\d+) kB$", status.read_text() if status.exists() else "", re.MULTILINE)
    held = int(found[1]) * 1024 if found else 0
    limit = setting.process_limit_bytes
    if limit is not None and held + nbytes > limit:
        raise NotSupported(
            f"{what} keeps all experts in host memory: {nbytes / 1e6:.0f} MB beside {held / 1e6:.0f} MB already "
            f"held exceed the process limit of {limit / 1e6:.0f} MB"
        )


def place_experts(module: Any, tensors: dict[str, torch.Tensor]) -> None:
    """Make ``tensors`` the parameters of an experts module, as they are."""
    for name, tensor in tensors.items():
        setattr(module, name, torch.nn.Parameter(tensor, requires_grad=False))
