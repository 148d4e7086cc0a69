"""llama.cpp in a process of its own, driven by ``baselines.llamacpp``; imports neither torch nor the harness.

A line of standard input is ``[method, arguments]``: a method of ``Engine`` and an object of its arguments.  The line of
standard output that answers it is ``{"result": ...}`` or ``{"error": message, "kind": class of the exception}``.  The
process ends at the end of its input.  llama.cpp's own output goes to standard error.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TextIO

_KV_TYPES = {"float32": 0, "float16": 1, "bfloat16": 30}  # ggml type numbers


class Engine:
    """One mapped model and at most one context, sized for one request."""

    def __init__(self) -> None:
        self._lib: Any = None
        self._model: Any = None
        self._context: _Context | None = None
        self._overrides: Any = None  # llama.cpp reads it for as long as the model is loaded

    def load(
        self, path: str, gpu_layers: int = 0, gpu: int = 0, in_host_memory: Sequence[str] = (), mapped: bool = True
    ) -> bool:
        """Map or read a GGUF file; False if llama.cpp cannot load it.

        Args:
            path: the file.
            gpu_layers: layers in the memory of a GPU, from the last one on.
            gpu: number of that GPU.
            in_host_memory: patterns of tensors that stay in host memory all the same.
            mapped: weights in host memory are pages of the file; otherwise they are read into memory.

        Raises:
            ImportError: llama_cpp is not installed, or cannot be loaded here.
            NotImplementedError: layers on a GPU, and llama_cpp is built without one.
        """
        import llama_cpp as lib

        self._lib = lib
        lib.llama_backend_init()
        if gpu_layers and not lib.llama_supports_gpu_offload():
            raise NotImplementedError(
                "llama_cpp is built for the CPU, or sees no GPU: CMAKE_ARGS=-DGGML_CUDA=on pip install "
                "--force-reinstall --no-cache-dir llama-cpp-python"
            )
        params = lib.llama_model_default_params()
        params.load_mode = lib.LLAMA_LOAD_MODE_MMAP if mapped else lib.LLAMA_LOAD_MODE_NONE
        params.use_extra_bufts = False
        params.n_gpu_layers = gpu_layers
        if gpu_layers:
            params.split_mode, params.main_gpu = lib.LLAMA_SPLIT_MODE_NONE, gpu
        if in_host_memory:
            self._overrides = _overrides(in_host_memory)
            params.tensor_buft_overrides = ctypes.cast(self._overrides, ctypes.c_void_p)
        self._model = lib.llama_model_load_from_file(path.encode(), params)
        return bool(self._model)

    def open(self, rows: int, batch: int, positions: int, **settings: Any) -> None:
        """Open a context for ``rows`` sequences of ``positions`` tokens each, at most ``batch`` tokens per step."""
        self.shut()
        self._context = _Context(self._lib, self._model, rows, batch, positions, **settings)

    def step(self, rows: Sequence[int], tokens: Sequence[Sequence[int]], starts: Sequence[int]) -> list[int]:
        """Feed tokens to some rows, each from its start position; returns the most likely next token of each row.

        Raises:
            RuntimeError: no context is open, or llama.cpp fails.
        """
        if self._context is None:
            raise RuntimeError("no context is open: call 'open' before 'step'")
        return self._context.step(rows, tokens, starts)

    def shut(self) -> None:
        """Free the context, if one is open."""
        if self._context is not None:
            self._context.close()
            self._context = None

    def close(self) -> None:
        self.shut()
        if self._model:
            self._lib.llama_model_free(self._model)
            self._model = None


class _Override(ctypes.Structure):
    """``llama_model_tensor_buft_override`` of llama.h: tensors whose names match go to a type of buffer."""

    _fields_ = (("pattern", ctypes.c_char_p), ("buffer_type", ctypes.c_void_p))


def _overrides(patterns: Sequence[str]) -> Any:
    """The overrides that keep matching tensors in host memory, ended by an empty one."""
    from llama_cpp import _ggml

    host = _ggml.libggml.ggml_backend_cpu_buffer_type
    host.restype = ctypes.c_void_p
    listed = [_Override(pattern.encode(), host()) for pattern in patterns]
    return (_Override * (len(listed) + 1))(*listed)


class _Context:
    """One llama.cpp context; decodes the rows of a batch greedily."""

    def __init__(
        self, lib: Any, model: Any, rows: int, batch: int, positions: int, ubatch: int, threads: int, dtype: str
    ) -> None:
        self._lib = lib
        self._vocab = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
        params = lib.llama_context_default_params()
        params.n_seq_max = rows
        params.n_ctx = rows * (-(-positions // 256) * 256)
        params.n_batch, params.n_ubatch = batch, min(batch, ubatch)
        params.n_threads = params.n_threads_batch = threads
        params.type_k = params.type_v = _KV_TYPES[dtype]
        if dtype == "float32":  # the flash kernel rounds keys and values to 16 bits
            params.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self._context = lib.llama_init_from_model(model, params)
        if not self._context:
            raise RuntimeError(
                f"llama.cpp cannot open a context for {rows} rows of {positions} tokens: lower the batch size"
            )
        self._batch = lib.llama_batch_init(batch, 0, 1)

    def step(self, rows: Sequence[int], tokens: Sequence[Sequence[int]], starts: Sequence[int]) -> list[int]:
        batch, used, last = self._batch, 0, []
        for row, ids, start in zip(rows, tokens, starts, strict=True):
            for offset, token in enumerate(ids):
                batch.token[used], batch.pos[used] = token, start + offset
                batch.n_seq_id[used], batch.seq_id[used][0] = 1, row
                batch.logits[used] = offset == len(ids) - 1
                used += 1
            last.append(used - 1)
        batch.n_tokens = used
        if code := self._lib.llama_decode(self._context, batch):
            raise RuntimeError(f"llama_decode failed with code {code} on {used} tokens")
        return [self._most_likely(index) for index in last]

    def _most_likely(self, index: int) -> int:
        import numpy as np

        logits = self._lib.llama_get_logits_ith(self._context, index)
        return int(np.argmax(np.ctypeslib.as_array(logits, (self._vocab,))))

    def close(self) -> None:
        self._lib.llama_batch_free(self._batch)
        self._lib.llama_free(self._context)


def serve(engine: Engine, requests: Iterable[str], answers: TextIO) -> None:
    """Answer every line of ``requests``."""
    methods: dict[str, Callable[..., Any]] = {
        "load": engine.load,
        "open": engine.open,
        "step": engine.step,
        "shut": engine.shut,
    }
    for line in requests:
        method, arguments = json.loads(line)
        try:
            answer = {"result": methods[method](**arguments)}
        except Exception as error:  # the process boundary: the driver raises it
            answer = {"error": str(error), "kind": type(error).__name__}
        print(json.dumps(answer), file=answers, flush=True)


def main() -> None:
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        engine = Engine()
        try:
            serve(engine, sys.stdin, answers)
        finally:
            engine.close()


if __name__ == "__main__":
    main()
