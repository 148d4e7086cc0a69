"""The arguments of the streaming kernels: indices of the int64 fields in the block whose address they take."""

from __future__ import annotations

from array import array

NEXT, TASKS, BLOCKS, BLOCK = 0, 1, 2, 3  # the counter of tasks, their number, tasks per expert, weight rows per task
X, OUT, WIDTH, INNER, HIDDEN = 4, 5, 6, 7, 8  # input and output rows, H, I, and the rows between the two products
GROUPS, TOKENS, PICKS, GATE, NUMBERS = 9, 10, 11, 12, 13  # experts, input row and output row of each pick, gate
WEIGHT, BIAS, ROWS, LINES = 9, 10, 11, 12  # of ``linear``, which has WIDTH output features of INNER inputs each
SCALES, LENGTH, UNITS = 13, 14, 15  # of packed weights: scales, groups of 32 per row of the first product, I
FIELDS = 16
FIRST_WEIGHT, FIRST_BIAS, DOWN_WEIGHT, DOWN_BIAS, START, END = range(6)  # of one expert: addresses (0: none), its picks
EXPERT_FIELDS = 6
FIRST_SCALES, DOWN_SCALES = 6, 7  # of one packed expert, besides
PACKED_EXPERT_FIELDS = 8
SILU, GELU, GELU_TANH, RELU, RELU_SQUARED = range(5)
INTERLEAVED, UNGATED = 16, 32  # added to the activation: gate and up rows alternate; there is only one first product
ALPHA, LIMIT, OFFSET = range(3)  # numbers of the gate, float32


def address(block: array[int]) -> int:
    """The address of a block of fields; the block must outlive the call."""
    return block.buffer_info()[0]
