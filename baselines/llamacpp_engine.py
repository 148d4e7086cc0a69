"""llama.cpp in a process of its own, driven by ``baselines.llamacpp``; imports neither torch nor the harness.

A line of standard input is ``[method, arguments]``: a method of ``Engine`` and an object of its arguments.  The line of
standard output that answers it is ``{"result": ...}`` or ``{"error": message, "kind": class of the exception}``.  The
process ends at the end of its input.  llama.cpp's own output goes to standard error.
"""

from __future__ import annotations

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

    def load(self, path: str) -> bool:
        """Map a GGUF file; False if llama.cpp cannot load it.

        Raises:
            ImportError: llama_cpp is not installed, or cannot be loaded here.
        """
        import llama_cpp as lib

        self._lib = lib
        lib.llama_backend_init()
        params = lib.llama_model_default_params()
        params.load_mode = lib.LLAMA_LOAD_MODE_MMAP
        params.use_extra_bufts = False
        params.n_gpu_layers = 0
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
