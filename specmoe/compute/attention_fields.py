"""The arguments of the attention kernel: indices of the int64 fields in the block whose address it takes."""

from __future__ import annotations

NEXT, TASKS, QKV, OUT, COS, SIN, COS_ROW = range(7)  # int64 fields; addresses, and bytes per row of the batch
KEYS, VALUES, LENGTH, POSITIONS, QUERIES = range(7, 12)  # the cache [B, heads, LENGTH, width] and where tokens go
HEADS, GROUP, WIDTH, QUERY_SCALE, KEY_SCALE = range(
    12, 17
)  # query heads, those per key head, scales of norms (0: none)
SCALING, EPS, SCRATCH, SCRATCH_ROW = range(17, 21)  # two float32 in the low half of their fields
FIELDS = 21
