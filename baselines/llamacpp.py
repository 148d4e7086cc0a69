"""llama.cpp over a memory-mapped GGUF file of the same checkpoint.

Rows are sequences of one ``llama_batch``.  The library runs in a process of its own (``baselines.llamacpp_engine``), as
its users run it, and only that process is under the limit.  On a CPU the file is mapped and weights are not repacked:
repacked copies would stay in memory outside the mapping.  ``baselines.llamacpp_gpu`` says what a GPU holds.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any, ClassVar

import torch
from pydantic import Field, field_validator

from baselines import gguf_file, llamacpp_gpu
from baselines.contract import (
    CapabilityCard,
    Generation,
    NotSupported,
    Request,
    Setting,
    SystemOptions,
    missing,
    prepared,
    require,
)
from baselines.counters import Counters
from baselines.registry import register
from specmoe.model.convert import open_or_build

_FILE = "model.gguf"
_END_TIMEOUT_S = 10.0
_ERRORS = {"ImportError": ImportError, "ModuleNotFoundError": ImportError, "NotImplementedError": NotSupported}


class _Driver:
    """The engine's process; calls methods of ``llamacpp_engine.Engine`` by name, one at a time."""

    def __init__(self, setting: Setting) -> None:
        command = [sys.executable, "-m", "baselines.llamacpp_engine"]
        self._process = setting.start_engine(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._requests: Any = self._process.stdin
        self._answers: Any = self._process.stdout

    def call(self, method: str, **arguments: Any) -> Any:
        """The method's result.

        Raises:
            RuntimeError: it failed, or the process has ended.
            ImportError: the engine cannot import llama_cpp.
            NotSupported: its llama_cpp is built without what the arguments ask for.
        """
        try:
            print(json.dumps([method, arguments]), file=self._requests, flush=True)
            line = self._answers.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise RuntimeError(f"llama.cpp's engine ended with code {self._process.wait()} in {method!r}")
        answer = json.loads(line)
        if "error" in answer:
            raise _ERRORS.get(answer["kind"], RuntimeError)(answer["error"])
        return answer["result"]

    def close(self) -> None:
        """End the process and wait for it."""
        try:
            self._process.communicate(timeout=_END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()


@register
class LlamaCppSystem:
    """The ``llama_batch`` API of llama-cpp-python over a mapped GGUF file."""

    card: ClassVar[CapabilityCard] = CapabilityCard(
        name="llama-cpp",
        title="llama.cpp, mmap",
        summary="GGUF of the same checkpoint, memory-mapped; the page cache decides which pages stay",
        grain="pages",
        knows_budget=False,
        tiers=("gpu", "ram", "disk"),
        devices=("cpu", "cuda"),
        slow_tiers=("disk", "host"),
        own_process=True,
        extra="llamacpp",
    )

    class Options(SystemOptions):
        ubatch: int = 512
        n_gpu_layers: int = Field(default=999, ge=0, description="layers in GPU memory, from the last one on")
        n_cpu_moe: int | None = Field(
            default=None,
            ge=0,
            description="layers whose experts stay in host memory, from the first on; null: all",
        )
        override_tensor: str | None = Field(
            default=None, description="PATTERN=CPU,...: tensors in host memory, instead of n_cpu_moe"
        )

        @field_validator("override_tensor")
        @classmethod
        def _known_buffers(cls, text: str | None) -> str | None:
            if text is not None:
                llamacpp_gpu.overrides(text)
            return text

    def __init__(self, options: Any) -> None:
        self._options, self._ubatch = options, options.ubatch
        self._engine: _Driver | None = None
        self._context: dict[str, Any] = {}

    def build(self, setting: Setting) -> None:
        require("llama_cpp", "llamacpp")
        out = setting.scratch / _FILE
        if not out.exists():
            dtype = setting.dtype
            store = open_or_build(setting.model_path, setting.store_path, setting.stored, compute_dtype=dtype)
            gguf_file.write(setting.model_path, store, out, dtype)

    def prepare(self, setting: Setting) -> None:
        placed = llamacpp_gpu.load_arguments(self._options, setting.device, setting.slow_tier)
        dtype = str(setting.dtype).removeprefix("torch.")
        self._context = {"ubatch": self._ubatch, "threads": setting.threads, "dtype": dtype}
        self._engine = _Driver(setting)
        try:
            loaded = self._engine.call("load", path=str(setting.scratch / _FILE), **placed)
        except ImportError as error:
            raise missing("llama_cpp", "llamacpp", error) from error
        if not loaded:
            raise NotSupported(f"llama.cpp cannot load {_FILE}: delete the scratch folder to write it again")

    def generate(self, request: Request) -> Generation:
        engine = prepared(self._engine)
        prompts = [
            row[keep.bool()].tolist() for row, keep in zip(request.input_ids, request.attention_mask, strict=True)
        ]
        self._open_context(engine, request)
        first = engine.call("step", rows=list(range(len(prompts))), tokens=prompts, starts=[0] * len(prompts))
        new = [[token] for token in first]
        request.report_step(0)
        request.on_prefill_done()
        while rows := [row for row, length in enumerate(request.lengths) if len(new[row]) < length]:
            starts = [len(prompts[row]) + len(new[row]) - 1 for row in rows]
            following = engine.call("step", rows=rows, tokens=[new[row][-1:] for row in rows], starts=starts)
            for row, token in zip(rows, following, strict=True):
                new[row].append(token)
                request.on_tokens(row, 1)
        engine.call("shut")
        counters = Counters(decode_steps=request.new_tokens - 1, tokens_per_step=1.0)
        return Generation([torch.tensor(row) for row in new], counters)

    def _open_context(self, engine: _Driver, request: Request) -> None:
        """Open a context in the engine that is large enough for the request."""
        rows, width = request.input_ids.shape
        batch = max(int(request.attention_mask.sum()), rows)
        engine.call("open", rows=rows, batch=batch, positions=width + request.new_tokens, **self._context)

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()
            self._engine = None
