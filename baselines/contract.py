"""The adapter contract: what a system must implement to be measured.

A system is a class with a ``card``, an ``Options`` model and four methods (``System``), registered by
``baselines.registry``.  The harness drives every system only through this contract and times all of them with the same
clock.
"""

from __future__ import annotations

import importlib
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, TypeVar

import torch
from pydantic import BaseModel, ConfigDict

from baselines.counters import Counters
from baselines.decoding import Decoding

Grain = Literal["experts", "modules", "layers", "pages", "nothing", "unknown"]
Tier = Literal["gpu", "ram", "disk"]
Sampling = Literal["greedy", "temperature"]
DeviceType = Literal["cpu", "cuda"]
SlowTierKind = Literal["disk", "host", "paced"]
UNFINISHED = "\ufffd"
"""What a tokenizer decodes a character to of which the last bytes are missing; texts are compared without it."""
SAMPLES: tuple[Sampling, ...] = ("greedy", "temperature")
DTYPES = ("float32", "bfloat16", "float16")
T = TypeVar("T")


class NotSupported(Exception):
    """The system cannot run this cell on this machine; the message is the reason."""


@dataclass(frozen=True)
class CapabilityCard:
    """What a system is and how it may be compared.

    ``grain`` is the smallest unit it moves between tiers (``pages``: the kernel moves pages of a mapped file;
    ``nothing``: all weights stay; ``unknown``: the system does not say).  ``knows_budget`` systems enforce
    ``expert_budget_bytes`` themselves; the others are limited by the process limit alone.  ``tiers`` are where it can
    keep experts; ``dtypes``, ``sampling`` and ``max_batch`` (None: any) are what it can run, ``devices`` where it
    computes, and ``slow_tiers`` where experts may come from (host memory at full or at a stated rate, or a disk); the
    harness records ``not_supported`` for anything else.  ``run_on`` are those of ``devices`` that it was run on; for
    the others it was only written.
    ``limited`` is False only for an upper bound that keeps all weights in memory and runs without the limit.
    ``own_process``: the system's engine is a separate process, started in ``prepare`` with ``setting.start_engine``;
    the limit applies to that process instead of the worker that drives it.
    ``external``: its engine was started by the user, outside of this harness: no limit and no count of the kernel
    reaches it, and records say so.
    ``fills_limit``: it can choose its own budget so that the process limit is used up (``setting.fills_limit``).
    ``joins_rows``: it serves a queue itself (``serve`` of ``baselines.queueing``), and requests join others under way;
    the harness gives a queue to any other system in static batches, in order.
    ``extra`` names the pip extra it needs, ``build_options`` the options that change the result of ``build``.
    ``builds`` is False where ``build`` makes nothing but the expert store, so that no process has to be started for it.
    """

    name: str
    title: str
    summary: str
    grain: Grain
    knows_budget: bool
    lossless: bool = True
    kind: Literal["measured", "oracle"] = "measured"
    tiers: tuple[Tier, ...] = ("ram", "disk")
    dtypes: tuple[str, ...] = DTYPES
    sampling: tuple[Sampling, ...] = ("greedy",)
    max_batch: int | None = None
    devices: tuple[DeviceType, ...] = ("cpu",)
    slow_tiers: tuple[SlowTierKind, ...] = ("disk",)
    run_on: tuple[DeviceType, ...] = ("cpu",)
    limited: bool = True
    own_process: bool = False
    external: bool = False
    fills_limit: bool = False
    joins_rows: bool = False
    extra: str | None = None
    build_options: tuple[str, ...] = ()
    builds: bool = True

    @property
    def only_written_for(self) -> tuple[DeviceType, ...]:
        """Devices that it was written for and never run on; none for a system without an adapter, and for a server."""
        if self.external or not self.run_on:
            return ()
        return tuple(device for device in self.devices if device not in self.run_on)

    def refusal(
        self,
        dtype: str,
        batch_size: int,
        device: str = "cpu",
        slow_tier: str = "disk",
        decoding: Decoding | None = None,
        requests: int | None = None,
    ) -> str | None:
        """The reason why the card excludes such a cell, or None."""
        if requests is not None and self.kind == "oracle":
            return f"{self.name} computes its times, and requests of a queue arrive by the clock: remove requests"
        if device.partition(":")[0] not in self.devices:
            return f"{self.name} does not compute on {device}: use device: {' or '.join(self.devices)}"
        if slow_tier.partition(":")[0] not in self.slow_tiers:
            return f"{self.name} does not take experts from {slow_tier}: use slow_tier: {' or '.join(self.slow_tiers)}"
        if decoding is not None and "temperature" not in self.sampling:
            return f"{self.name} decodes greedily only: remove decoding, or the system"
        if dtype not in self.dtypes:
            return f"{self.name} does not run {dtype}: use {' or '.join(self.dtypes)}"
        if self.max_batch is not None and batch_size > self.max_batch:
            return f"{self.name} runs at most {self.max_batch} sequences at once: use a smaller batch"
        return None


class SystemOptions(BaseModel):
    """Base of every adapter's options: typed; unknown names are rejected."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class StartEngine(Protocol):
    """Starts a command as ``subprocess.Popen`` would, under the memory limit and disk throttle of the cell, if any.

    The process dies with this one at the latest; ``close`` must end it and wait for it.  Call it from the thread that
    runs ``prepare``.  ``popen`` are arguments of ``subprocess.Popen`` for pipes, folder and environment.

    Raises:
        RuntimeError: the command cannot be started, or not under the limit.
    """

    def __call__(self, argv: Sequence[str], **popen: Any) -> subprocess.Popen[Any]: ...


def _start_unlimited(argv: Sequence[str], **popen: Any) -> subprocess.Popen[Any]:
    return subprocess.Popen(argv, **popen)


def _ignore(row: int, count: int) -> None:
    pass


@dataclass(frozen=True)
class Request:
    """One batch: exactly ``lengths[b]`` new tokens for row b, chosen as ``decoding`` says (None: greedily).

    ``input_ids`` and ``attention_mask`` are long [B, S], padded on the left.  ``new_tokens`` is the largest of
    ``lengths``; where ``output_tokens`` is None, it holds for every row.  ``on_prefill_done`` must be called once,
    as soon as the first new token of every row is known.  ``on_tokens(row, count)`` should be called, from any thread,
    whenever ``count`` further tokens of a row are final, the first one included: latencies are taken from it, and a
    system that never calls it has none.

    Raises:
        ValueError: shapes differ, a row is empty or padded on the right, or a row asks for less than 1 token.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    new_tokens: int
    on_prefill_done: Callable[[], None]
    output_tokens: tuple[int, ...] | None = None
    on_tokens: Callable[[int, int], None] = _ignore
    decoding: Decoding | None = None

    def __post_init__(self) -> None:
        ids, mask = self.input_ids, self.attention_mask
        if ids.dim() != 2 or ids.shape != mask.shape or not ids.numel():
            raise ValueError(f"ids {list(ids.shape)} and mask {list(mask.shape)} must both be [B, S], B and S above 0")
        if bool((mask[:, -1] == 0).any()) or bool((mask.diff(dim=1) < 0).any()):
            raise ValueError("every row needs a token and its padding on the left: use padding_side='left'")
        if self.new_tokens < 1:
            raise ValueError(f"new_tokens is {self.new_tokens}: ask for 1 or more")
        if len(self.lengths) != len(ids) or min(self.lengths) < 1 or max(self.lengths) != self.new_tokens:
            raise ValueError(
                f"output_tokens {list(self.lengths)} do not fit {len(ids)} rows of at most {self.new_tokens} tokens: "
                "give each row 1 or more, the longest exactly new_tokens"
            )

    @property
    def lengths(self) -> tuple[int, ...]:
        """Number of new tokens of each row."""
        return self.output_tokens or (self.new_tokens,) * len(self.input_ids)

    def report_step(self, step: int) -> None:
        """Report token ``step`` (from 0) of every row that is asked for so many, where all rows advance together."""
        for row, length in enumerate(self.lengths):
            if step < length:
                self.on_tokens(row, 1)

    def cut(self, new_ids: torch.Tensor) -> list[torch.Tensor]:
        """Each row's own tokens of ``new_ids`` (long [B, new_tokens]), for systems that end all rows together."""
        return [row[:length] for row, length in zip(new_ids, self.lengths, strict=True)]


@dataclass(frozen=True)
class Setting:
    """What a system gets to work with.

    ``model_path`` is a Hugging Face folder, ``store_path`` the folder of its expert store, which may not exist yet,
    and ``scratch`` a folder of the system's own that outlives the process.  ``process_limit_bytes`` is the
    kernel's limit for this process (or its engine), page cache and experts in host memory included; None where there
    is none.  ``device`` computes and holds resident experts (``cpu``, ``cuda``, ``cuda:1``), ``slow_tier`` holds all of
    them (``specmoe.offload.slow_tier``).  ``device_limit_bytes`` caps a GPU's memory where the card does not know the
    budget: the harness caps torch's allocator, an engine in a process of its own must see to it itself.
    ``calibration_texts`` are prompts a system may profile the model with in ``build``; they are never among the
    measured ones.  Systems compute in ``dtype``; the experts of the store are in ``stored``.  With ``fills_limit`` the
    system takes as many bytes for experts as the process limit leaves, and ``probe`` is the request to come, to find
    out how many; ``expert_budget_bytes`` is then None.  ``start_engine`` is for cards with
    ``own_process``; its default starts without a limit.

    Any other field is filled from the field of the same name of the cell (``reports.results.record.Cell``).
    """

    model_path: Path
    store_path: Path
    scratch: Path
    dtype: torch.dtype
    expert_budget_bytes: int | None
    threads: int
    device: str = "cpu"
    slow_tier: str = "disk"
    device_limit_bytes: int | None = None
    stored_dtype: torch.dtype | None = None
    batch_size: int | None = None
    calibration_texts: tuple[str, ...] = ()
    process_limit_bytes: int | None = None
    fills_limit: bool = False
    probe: Request | None = None
    start_engine: StartEngine = _start_unlimited

    @property
    def stored(self) -> torch.dtype:
        """The dtype of the expert store: ``stored_dtype``, or ``dtype`` where that is None."""
        return self.stored_dtype or self.dtype


@dataclass
class Generation:
    """``new_ids`` holds the new tokens without the prompt: long [B, new_tokens], or one long tensor [n] per row.

    ``counts`` is set by a system that gives text and no ids: its number of tokens of each row.  ``new_ids`` then holds
    the text, encoded again with the model's tokenizer, and is compared with the reference's text, encoded likewise.
    """

    new_ids: torch.Tensor | Sequence[torch.Tensor]
    counters: Counters = field(default_factory=Counters)
    counts: Sequence[int] | None = None

    def lengths(self) -> list[int]:
        """Number of new tokens of each row."""
        return [len(row) for row in self.rows()] if self.counts is None else list(self.counts)

    def rows(self) -> list[list[int]]:
        """The new tokens of each row.

        Raises:
            TypeError: ``new_ids`` is of another type or shape.
        """
        ids: Any = self.new_ids
        rows = ids if isinstance(ids, Sequence) or (isinstance(ids, torch.Tensor) and ids.dim() == 2) else [ids]
        for row in rows:
            if row is ids or not isinstance(row, torch.Tensor) or row.dim() != 1 or row.dtype != torch.long:
                raise TypeError(
                    f"Generation.new_ids holds {_described(row)}: "
                    "give a long tensor [B, new_tokens], or a list with one long tensor [n] per row"
                )
        return [row.tolist() for row in rows]


def _described(value: object) -> str:
    """A value's type, and dtype and shape of a tensor."""
    if isinstance(value, torch.Tensor):
        return f"a tensor {list(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    return f"a value of type {type(value).__name__}"


def before_first_token(request: Request, action: Callable[[], None]) -> Request:
    """The same request; ``action`` is called when the first token of every row is known, before the harness is."""

    def both() -> None:
        action()
        request.on_prefill_done()

    return replace(request, on_prefill_done=both)


def prepared(part: T | None) -> T:
    """``part`` of a system, which its ``prepare`` sets.

    Raises:
        RuntimeError: it is None.
    """
    if part is None:
        raise RuntimeError("the system is not ready: call prepare first, and generate before close")
    return part


class System(Protocol):
    """A system under test.  The constructor takes validated options of type ``Options``."""

    card: ClassVar[CapabilityCard]
    Options: ClassVar[type[SystemOptions]]

    def build(self, setting: Setting) -> None:
        """Make the files that every run needs (stores, offload folders); idempotent, runs without a limit."""
        ...

    def prepare(self, setting: Setting) -> None:
        """Load the model in the limited process, or start the limited engine process.

        Raises:
            NotSupported: this machine or model cannot run the system.
        """
        ...

    def generate(self, request: Request) -> Generation: ...

    def close(self) -> None: ...


def require(module: str, extra: str) -> Any:
    """Import an optional package.

    Raises:
        NotSupported: it is not installed, or its import fails; the message names the pip command.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise missing(module, extra, error) from error


def missing(module: str, extra: str, reason: object) -> NotSupported:
    """The error to raise when an optional package cannot be imported."""
    return NotSupported(f"{module} cannot be imported ({reason}): pip install 'specmoe-bench[{extra}]'")
