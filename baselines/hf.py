"""Shared by adapters over a transformers model: the timed call, and loading without experts."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import psutil
import torch
from transformers import PreTrainedModel, StoppingCriteria, StoppingCriteriaList

from baselines.contract import (
    CapabilityCard,
    Generation,
    NotSupported,
    Request,
    Setting,
    SystemOptions,
    prepared,
)
from baselines.counters import Counters
from baselines.decoding import Decoding
from specmoe.generation import plain_config
from specmoe.model.checkpoint import Checkpoint, build_shell, expert_modules
from specmoe.model.convert import open_or_build
from specmoe.model.families.base import HookedExperts

Experts = Literal["grouped_mm", "batched_mm", "eager"]


class _Steps:
    """A streamer that reports each step's tokens; transformers calls ``put`` with the prompt before the first."""

    def __init__(self, request: Request) -> None:
        self._request, self._puts = request, 0

    def put(self, value: torch.Tensor) -> None:
        self._puts += 1
        if self._puts > 1:
            self._request.report_step(self._puts - 2)
        if self._puts == 2:
            self._request.on_prefill_done()

    def end(self) -> None:
        pass


class _OwnLengths(StoppingCriteria):
    """Ends each row at its own number of new tokens."""

    eos_token_id = None  # transformers feeds ended rows padding only where a criterion has this attribute

    def __init__(self, request: Request, opening: int, device: torch.device) -> None:
        self._ends = opening + torch.tensor(request.lengths, device=device)

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return self._ends <= input_ids.shape[1]  # bool [B]


def decode(model: Any, request: Request) -> Generation:
    """What transformers' own loop generates for a request."""
    new_ids = sequences_of(model, request)[:, -request.new_tokens :].cpu()
    return Generation(request.cut(new_ids), Counters(decode_steps=request.new_tokens - 1, tokens_per_step=1.0))


def sequences_of(model: Any, request: Request) -> torch.Tensor:
    """Prompts and new tokens of transformers' own loop, in which each row ends at its own length as at a stop token.

    As transformers does it, an ended row stays in the batch and is fed padding until the last row ends.  Settings of
    the checkpoint's ``generation_config.json`` do not apply, except those with which an encoder-decoder's rows begin.
    """
    model.generation_config = plain_config(model)
    opening = 1 if model.config.is_encoder_decoder else request.input_ids.shape[1]  # tokens before the new ones
    with torch.random.fork_rng():
        sequences: torch.Tensor = model.generate(
            input_ids=request.input_ids.to(model.device),
            attention_mask=request.attention_mask.to(model.device),
            max_new_tokens=request.new_tokens,
            eos_token_id=None,
            pad_token_id=0,
            streamer=_Steps(request),
            stopping_criteria=StoppingCriteriaList([_OwnLengths(request, opening, model.device)]),
            **_choice(request.decoding),
        )
    return sequences


def _choice(decoding: Decoding | None) -> dict[str, Any]:
    """How transformers chooses tokens; seeds its draws."""
    if decoding is None:
        return {"do_sample": False}
    torch.manual_seed(decoding.seed)
    return {"do_sample": True, **decoding.model_dump(exclude={"seed"})}


class ExpertsOptions(SystemOptions):
    """Options of an adapter that runs transformers' own experts functions."""

    experts: Experts = "grouped_mm"


class TransformersSystem:
    """Base of an adapter that decodes with one transformers model.

    A subclass gives its card, its options and ``prepare``, which sets ``_model``; ``build`` makes the expert store.
    """

    card: ClassVar[CapabilityCard]
    Options: ClassVar[type[SystemOptions]] = SystemOptions

    def __init__(self, options: Any) -> None:
        self.options = options
        self._model: Any = None

    def build(self, setting: Setting) -> None:
        open_or_build(setting.model_path, setting.store_path, setting.stored, compute_dtype=setting.dtype)

    def generate(self, request: Request) -> Generation:
        return decode(prepared(self._model), request)

    def close(self) -> None:
        self._model = None


def check_interface(model: PreTrainedModel) -> None:
    """Check that transformers' own experts functions can run the experts of a shell.

    Raises:
        NotSupported: the family has experts of its own, which only this project's engine runs without their weights.
    """
    if any(isinstance(module, HookedExperts) for module in expert_modules(model).values()):
        raise NotSupported(
            f"{type(model).__name__} has its experts outside transformers' experts interface, which this system uses: "
            "compare with hf-resident, on-demand or caching"
        )


def shell_without_experts(setting: Setting, device: torch.device) -> PreTrainedModel:
    """The model with all but its experts on ``device``; the experts are on ``meta``.

    Raises:
        NotSupported: as ``check_interface``.
    """
    model = build_shell(setting.model_path, setting.dtype)
    check_interface(model)
    Checkpoint(setting.model_path, model).load_non_experts(device)
    return model


def check_fits_limit(setting: Setting, nbytes: int, what: str) -> None:
    """Refuse to allocate ``nbytes`` if the kernel would kill this process for it.

    Memory of mapped files is not counted as used: the kernel drops it before it kills.

    Raises:
        NotSupported: ``nbytes`` and the memory in use exceed the process limit.
    """
    memory = psutil.Process().memory_info()
    held = memory.rss - memory.shared  # anonymous memory
    limit = setting.process_limit_bytes
    if limit is not None and held + nbytes > limit:
        raise NotSupported(
            f"{what} keeps all experts in host memory: {nbytes / 1e6:.0f} MB on top of {held / 1e6:.0f} MB in use "
            f"exceed the process limit of {limit / 1e6:.0f} MB; raise process_overhead or expert_budget"
        )


def check_tier(setting: Setting, kind: str, what: str) -> None:
    """Refuse a GPU cell whose slow tier is not the one that a system takes its experts from.

    On a CPU systems that hold all experts in host memory run beside those that read a disk: nothing crosses a link.

    Raises:
        NotSupported: the cell names another tier.
    """
    if setting.device != "cpu" and setting.slow_tier != kind:
        raise NotSupported(
            f"{what} takes experts to the GPU from {kind}, the cell's slow tier is {setting.slow_tier}: "
            f"set slow_tier: {kind}"
        )


def place_experts(module: Any, tensors: dict[str, torch.Tensor]) -> None:
    """Make ``tensors`` the parameters of an experts module, without a copy."""
    for name, tensor in tensors.items():
        setattr(module, name, torch.nn.Parameter(tensor, requires_grad=False))
