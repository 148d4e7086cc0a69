"""The attention block of a decoder layer in one call: norm, projections, heads, output projection, sum, norm."""

from __future__ import annotations

from array import array
from dataclasses import dataclass

import numpy as np
import torch

from specmoe.compute import attention_fields, fields, norm_fields
from specmoe.compute.attention import Attention, place
from specmoe.compute.calls import StreamedProduct
from specmoe.compute.norm import RmsNorm
from specmoe.compute.threads import pool

_STEP = 3  # words of one call: lines with counters, function, argument


@dataclass
class _Program:
    """Calls of one shape and their arguments, in ``words``; ``starts`` of the arguments; ``floats`` between them."""

    words: array[int]
    starts: list[int]
    floats: int


class AttentionBlock:
    """``sum = x + output(attention(projections(first(x))))`` and ``second(sum)``, in float32 on a CPU.

    ``projections`` gives queries, keys and values of each token.  Not to be called from two threads at once.
    """

    def __init__(
        self,
        first: RmsNorm,
        projections: StreamedProduct,
        attention: Attention,
        output: StreamedProduct,
        second: RmsNorm,
    ) -> None:
        from specmoe.compute import norm_kernel  # numba is imported when it is first needed

        self._norms, self._products, self._attention = (first, second), (projections, output), attention
        self._norm = norm_kernel.compiled_sum()
        self._programs: dict[tuple[int, int, int, int], _Program] = {}

    def __call__(
        self,
        x: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        positions: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The sum and its norm, of the shape of ``x`` ([B, Q, H], contiguous); the others as in ``Attention``."""
        rows, queries = positions.shape
        shape = rows, queries, keys.shape[2], torch.get_num_threads()
        program = self._programs.get(shape)
        if program is None:
            program = self._programs[shape] = self._program(*shape)
        words, (first, into, heads, out, second) = program.words, program.starts
        total, normed, between = torch.empty_like(x), torch.empty_like(x), x.new_empty(program.floats)
        tokens = rows * queries
        widths = [len(self._products[0].weight), self._products[1].weight.shape[1], x.shape[-1]]
        projected = between.data_ptr()
        attended = projected + 4 * tokens * widths[0]
        added = attended + 4 * tokens * widths[1]
        words[first + norm_fields.X] = words[second + norm_fields.X] = x.data_ptr()
        words[first + norm_fields.OUT] = words[into + fields.HIDDEN] = (
            normed.data_ptr()
        )  # not needed after the projections
        words[into + fields.OUT] = words[heads + attention_fields.QKV] = projected
        words[heads + attention_fields.OUT] = words[out + fields.HIDDEN] = attended
        words[heads + attention_fields.SCRATCH] = added + 4 * tokens * widths[2]
        words[out + fields.OUT] = words[second + norm_fields.ADDED] = added
        words[second + norm_fields.SUM], words[second + norm_fields.OUT] = total.data_ptr(), normed.data_ptr()
        place(words, cos, sin, keys, values, positions, heads)
        pool(shape[-1]).run_sequence(fields.address(words), len(program.starts))
        return total, normed

    def _program(self, rows: int, queries: int, longest: int, threads: int) -> _Program:
        tokens, (projections, output) = rows * queries, self._products
        calls = [
            (0, self._norm, self._norm_arguments(0, tokens)),
            (projections.lines(threads), projections.function, projections.arguments(tokens, threads)),
            (1, self._attention.function, self._attention.arguments(rows, queries, longest)),
            (output.lines(threads), output.function, output.arguments(tokens, threads)),
            (0, self._norm, self._norm_arguments(1, tokens)),
        ]
        words, starts = array("q", bytes(8 * _STEP * len(calls))), list[int]()
        for _, _, block in calls:
            starts.append(len(words))
            words.extend(block)
        for i, (shared, function, _) in enumerate(calls):
            words[_STEP * i : _STEP * (i + 1)] = array("q", [shared, function, fields.address(words) + 8 * starts[i]])
        scratch = rows * self._attention.heads.keys * (self._attention.heads.width + longest)
        widths = len(projections.weight) + output.weight.shape[1] + len(output.weight)
        return _Program(words, starts, tokens * widths + scratch)

    def _norm_arguments(self, which: int, tokens: int) -> array[int]:
        norm, block = self._norms[which], array("q", bytes(8 * norm_fields.FIELDS))
        block[norm_fields.SCALE], block[norm_fields.ROWS] = norm.scale.data_ptr(), tokens
        block[norm_fields.WIDTH] = len(norm.scale)
        block[norm_fields.EPS] = int(np.array([norm.eps], dtype=np.float32).view(np.uint32)[0])
        return block
