"""Attention of a few tokens per row over their cache, from projected queries, keys and values to the heads' outputs."""

from __future__ import annotations

from array import array
from dataclasses import dataclass

import numpy as np
import torch

from specmoe.compute import attention_fields as fields
from specmoe.compute.fields import address
from specmoe.compute.threads import pool


@dataclass(frozen=True)
class Heads:
    """Heads of an attention layer.

    Attributes:
        queries, keys: their numbers; a key head serves ``queries // keys`` query heads.
        width: elements of a head, even.
        scaling: of the scores.
        query_scale, key_scale: [width], of norms by the root mean square before rotation; None for none.
        eps: of these norms.
    """

    queries: int
    keys: int
    width: int
    scaling: float
    query_scale: torch.Tensor | None = None
    key_scale: torch.Tensor | None = None
    eps: float = 0.0


class Attention:
    """Causal attention with rotary positions, in float32 on a CPU."""

    def __init__(self, heads: Heads) -> None:
        from specmoe.compute import attention_kernel  # numba is imported when it is first needed

        self.heads = heads
        self.function = attention_kernel.compiled()
        self._block = array("q", bytes(8 * fields.FIELDS))
        self._block[fields.HEADS], self._block[fields.GROUP], self._block[fields.WIDTH] = (
            heads.queries,
            heads.queries // heads.keys,
            heads.width,
        )
        for field, scale in ((fields.QUERY_SCALE, heads.query_scale), (fields.KEY_SCALE, heads.key_scale)):
            self._block[field] = 0 if scale is None else scale.data_ptr()
        for field, number in ((fields.SCALING, heads.scaling), (fields.EPS, heads.eps)):
            self._block[field] = int(np.array([number], dtype=np.float32).view(np.uint32)[0])

    def __call__(
        self,
        projected: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        positions: torch.Tensor,
        longest: int,
    ) -> torch.Tensor:
        """Write the tokens' keys and values into the cache and attend to all up to their own: [B * Q, heads * width].

        Args:
            projected: [B * Q, (queries + 2 * keys) * width], contiguous: queries, keys and values of each token.
            cos, sin: [B or 1, Q, width], contiguous.
            keys, values: the cache, [B, key heads, most positions, width], contiguous.
            positions: long [B, Q], contiguous: where in the cache each token goes.
            longest: one more than the largest position.
        """
        rows, queries = positions.shape
        tasks = rows * self.heads.keys
        out = projected.new_empty(rows * queries, self.heads.queries * self.heads.width)
        scratch = projected.new_empty(tasks, self.heads.width + longest)
        block = self.arguments(rows, queries, longest)
        block[fields.QKV], block[fields.OUT] = projected.data_ptr(), out.data_ptr()
        block[fields.SCRATCH] = scratch.data_ptr()
        place(block, cos, sin, keys, values, positions)
        pool(torch.get_num_threads()).run(self.function, address(block))
        return out

    def arguments(self, rows: int, queries: int, longest: int) -> array[int]:
        """A block of fields without the addresses of a call."""
        block = self._block[:]
        block[fields.TASKS], block[fields.QUERIES] = rows * self.heads.keys, queries
        block[fields.SCRATCH_ROW] = 4 * (self.heads.width + longest)
        return block


def place(
    block: array[int],
    cos: torch.Tensor,
    sin: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    positions: torch.Tensor,
    start: int = 0,
) -> None:
    """Fill in the addresses of rotations, cache and positions in the fields from ``start`` on."""
    block[start + fields.COS], block[start + fields.SIN] = cos.data_ptr(), sin.data_ptr()
    block[start + fields.COS_ROW] = 0 if len(cos) == 1 else 4 * cos.shape[1] * cos.shape[2]
    block[start + fields.KEYS], block[start + fields.VALUES] = keys.data_ptr(), values.data_ptr()
    block[start + fields.LENGTH], block[start + fields.POSITIONS] = keys.shape[2], positions.data_ptr()
