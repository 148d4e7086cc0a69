"""llama.cpp over a memory-mapped GGUF file of the same checkpoint.

Rows are sequences of one ``llama_batch``.  The library runs in a process of its own (``baselines.llamacpp_engine``), as
its users run it, and only that process is under the limit.  The file is mapped and weights are not repacked: repacked
copies would stay in memory outside the mapping.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any, ClassVar

import torch

from baselines import gguf_file
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
            kind = ImportError if answer["kind"] in ("ImportError", "ModuleNotFoundError") else RuntimeError
            raise kind(answer["error"])
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
        own_process=True,
        extra="llamacpp",
    )

    class Options(SystemOptions):
        ubatch: int = 512

    def __init__(self, options: Any) -> None:
        self._ubatch = options.ubatch
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
        dtype = str(setting.dtype).removeprefix("torch.")
        self._context = {"ubatch": self._ubatch, "threads": setting.threads, "dtype": dtype}
        self._engine = _Driver(setting)
        try:
            loaded = self._engine.call("load", path=str(setting.scratch / _FILE))
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
