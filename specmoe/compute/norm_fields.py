"""The arguments of the kernel that adds and normalises: indices of the int64 fields in the block it takes."""

from __future__ import annotations

X, ADDED, SUM, SCALE, OUT, ROWS, WIDTH, EPS = range(8)
FIELDS = 8
