"""llama.cpp over a memory-mapped GGUF file of the same checkpoint: what many would use instead.

Rows are sequences of one ``llama_batch``.  The library runs in a process of its own (``baselines.llamacpp_engine``),
as its users run it, and that process has the limit to itself.  The file is mapped; weights are not repacked, since
repacked copies would leave the mapping and stay in memory.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from baselines import gguf_file
from baselines.contract import (
    CapabilityCard,
    Counters,
    Generation,
    NotSupported,
    Request,
    Setting,
    SystemOptions,
    missing,
    register,
    require,
)
from specmoe.model.convert import open_or_build

_FILE = "model.gguf"
_END_TIMEOUT_S = 10.0


class _Driver:
    """The engine's process; a method of ``llamacpp_engine.Engine`` is called by name, one at a time."""

    def __init__(self, setting: Setting) -> None:
        command = [sys.executable, "-m", "baselines.llamacpp_engine"]
        self._process = setting.start_engine(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def call(self, method: str, **arguments: Any) -> Any:
        """What the method returns.

        Raises:
            RuntimeError: it failed, or the process has ended.
            ImportError: the engine cannot import llama_cpp.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            print(json.dumps([method, arguments]), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
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
        summary="GGUF of the same checkpoint, memory-mapped; the page cache decides what stays",
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
        self._setting: Setting | None = None

    def build(self, setting: Setting) -> None:
        require("llama_cpp", "llamacpp")
        out = setting.scratch / _FILE
        if not out.exists():
            gguf_file.write(
                setting.model_path, open_or_build(setting.model_path, setting.store_path, setting.dtype), out
            )

    def prepare(self, setting: Setting) -> None:
        self._setting, self._engine = setting, _Driver(setting)
        try:
            loaded = self._engine.call("load", path=str(setting.scratch / _FILE))
        except ImportError as error:
            raise missing("llama_cpp", "llamacpp", error) from error
        if not loaded:
            raise NotSupported(f"llama.cpp cannot load {_FILE}: delete the scratch folder to write it again")

    def generate(self, request: Request) -> Generation:
        assert self._engine is not None
        prompts = [
            row[keep.bool()].tolist() for row, keep in zip(request.input_ids, request.attention_mask, strict=True)
        ]
        self._open(request)
        new = [[token] for token in self._step(range(len(prompts)), prompts, [0] * len(prompts))]
        request.on_prefill_done()
        while going := [row for row, length in enumerate(request.lengths) if len(new[row]) < length]:
            places = [len(prompts[row]) + len(new[row]) - 1 for row in going]
            for row, token in zip(going, self._step(going, [new[row][-1:] for row in going], places), strict=True):
                new[row].append(token)
        self._engine.call("shut")
        counters = Counters(decode_steps=request.new_tokens - 1, tokens_per_step=1.0)
        return Generation([torch.tensor(row) for row in new], counters)

    def _open(self, request: Request) -> None:
        """A context in the engine with room for the request."""
        assert self._setting is not None
        assert self._engine is not None
        rows, width = request.input_ids.shape
        self._engine.call(
            "open",
            rows=rows,
            batch=max(int(request.attention_mask.sum()), rows),
            positions=width + request.new_tokens,
            ubatch=self._ubatch,
            threads=self._setting.threads,
            dtype=str(self._setting.dtype).removeprefix("torch."),
        )

    def _step(self, rows: Sequence[int], tokens: Sequence[Sequence[int]], starts: Sequence[int]) -> list[int]:
        assert self._engine is not None
        new: list[int] = self._engine.call("step", rows=list(rows), tokens=tokens, starts=starts)
        return new

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()
            self._engine = None
