"""llama.cpp over a memory-mapped GGUF file of the same checkpoint: what many would use instead.

Rows are sequences of one ``llama_batch``.  The file is mapped under the same process limit as every other
system; weights are not repacked, since repacked copies would leave the mapping and stay in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
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
    register,
    require,
)
from specmoe.convert import open_or_build

_FILE = "model.gguf"
_KV_TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 30}  # ggml type numbers


class _Context:
    """One llama.cpp context with room for a request; greedy over the rows of a batch."""

    def __init__(self, lib: Any, model: Any, request: Request, setting: Setting, ubatch: int) -> None:
        rows, width = request.input_ids.shape
        self._lib, self.rows = lib, rows
        self.vocab = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
        self.capacity = max(int(request.attention_mask.sum()), rows)
        params = lib.llama_context_default_params()
        params.n_seq_max = rows
        params.n_ctx = rows * (-(-(width + request.new_tokens) // 256) * 256)
        params.n_batch, params.n_ubatch = self.capacity, min(self.capacity, ubatch)
        params.n_threads = params.n_threads_batch = setting.threads
        params.type_k = params.type_v = _KV_TYPES[setting.dtype]
        if setting.dtype == torch.float32:  # the flash kernel rounds keys and values to 16 bits
            params.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self._context = lib.llama_init_from_model(model, params)
        if not self._context:
            raise RuntimeError(f"llama.cpp made no context for {rows} rows of {width} tokens: lower the batch size")
        self._batch = lib.llama_batch_init(self.capacity, 0, 1)

    def step(self, rows: Sequence[int], tokens: Sequence[Sequence[int]], starts: Sequence[int]) -> list[int]:
        """Feed tokens to some rows, each at its position; returns the most likely next token of each."""
        batch, place, last = self._batch, 0, []
        for row, ids, start in zip(rows, tokens, starts, strict=True):
            for offset, token in enumerate(ids):
                batch.token[place], batch.pos[place] = token, start + offset
                batch.n_seq_id[place], batch.seq_id[place][0] = 1, row
                batch.logits[place] = offset == len(ids) - 1
                place += 1
            last.append(place - 1)
        batch.n_tokens = place
        if code := self._lib.llama_decode(self._context, batch):
            raise RuntimeError(f"llama_decode failed with code {code} on {place} tokens")
        return [int(np.argmax(self._logits(place))) for place in last]

    def _logits(self, place: int) -> Any:
        return np.ctypeslib.as_array(self._lib.llama_get_logits_ith(self._context, place), (self.vocab,))

    def close(self) -> None:
        self._lib.llama_batch_free(self._batch)
        self._lib.llama_free(self._context)


@register
class LlamaCppSystem:
    """The ``llama_batch`` API of llama-cpp-python over a mapped GGUF file."""

    card: ClassVar[CapabilityCard] = CapabilityCard(
        name="llama-cpp",
        title="llama.cpp, mmap",
        summary="GGUF of the same checkpoint, memory-mapped; the page cache decides what stays",
        grain="pages",
        knows_budget=False,
        extra="llamacpp",
    )

    class Options(SystemOptions):
        ubatch: int = 512

    def __init__(self, options: Any) -> None:
        self._ubatch = options.ubatch
        self._lib: Any = None
        self._model: Any = None
        self._setting: Setting | None = None

    def build(self, setting: Setting) -> None:
        require("llama_cpp", "llamacpp")
        out = setting.scratch / _FILE
        if not out.exists():
            gguf_file.write(
                setting.model_path, open_or_build(setting.model_path, setting.store_path, setting.dtype), out
            )

    def prepare(self, setting: Setting) -> None:
        self._lib, self._setting = require("llama_cpp", "llamacpp"), setting
        self._lib.llama_backend_init()
        params = self._lib.llama_model_default_params()
        params.load_mode = self._lib.LLAMA_LOAD_MODE_MMAP
        params.use_extra_bufts = False
        params.n_gpu_layers = 0
        self._model = self._lib.llama_model_load_from_file(str(setting.scratch / _FILE).encode(), params)
        if not self._model:
            raise NotSupported(f"llama.cpp cannot load {_FILE}: delete the scratch folder to write it again")

    def generate(self, request: Request) -> Generation:
        assert self._setting is not None
        prompts = [
            row[keep.bool()].tolist() for row, keep in zip(request.input_ids, request.attention_mask, strict=True)
        ]
        context = _Context(self._lib, self._model, request, self._setting, self._ubatch)
        try:
            new = [[token] for token in context.step(range(len(prompts)), prompts, [0] * len(prompts))]
            request.on_prefill_done()
            while going := [row for row, length in enumerate(request.lengths) if len(new[row]) < length]:
                places = [len(prompts[row]) + len(new[row]) - 1 for row in going]
                for row, token in zip(
                    going, context.step(going, [new[row][-1:] for row in going], places), strict=True
                ):
                    new[row].append(token)
        finally:
            context.close()
        counters = Counters(decode_steps=request.new_tokens - 1, tokens_per_step=1.0)
        return Generation([torch.tensor(row) for row in new], counters)

    def close(self) -> None:
        if self._model is not None:
            self._lib.llama_model_free(self._model)
            self._model = None
