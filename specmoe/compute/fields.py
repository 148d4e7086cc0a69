"""The arguments of the streaming kernels: indices of the int64 fields in the block whose address they take."""

from __future__ import annotations

from array import array

SLOT = 0  # counter of threads that have begun; counters have lines of the cache of their own
TASKS, BLOCKS, BLOCK = 8, 9, 10  # number of tasks, tasks per expert, weight rows per task
X, OUT, WIDTH, INNER = 11, 12, 13, 14  # input and output rows, H, I
DEPTH, UP, LINE = 15, 16, 17  # H and I as padded, numbers per row between the products (of a pick or of a panel)
HIDDEN, GROUPS = 18, 19  # rows between the products, experts
ORDER, TOP_K = 20, 21  # picks: pick p reads input row p // TOP_K and writes output row p
GATE, NUMBERS = 22, 23  # the activation
KIND, PANELS, RANGES, SCRATCH, SCRATCH_BYTES = 24, 25, 26, 27, 28  # of products with panels
THREADS = 29  # number of threads
NEXT, APART = 40, 8  # counters of the tasks taken of each thread's share
FIELDS = 40  # and APART for each thread
FIRST_WEIGHT, FIRST_BIAS, DOWN_WEIGHT, DOWN_BIAS, START, END = range(6)  # of one expert: addresses (0: none), its picks
FIRST_SCALES, DOWN_SCALES, FIRST_PANEL = 6, 7, 8  # of packed weights; of products with panels
EXPERT_FIELDS = 9
FLOAT32, BFLOAT16, FLOAT16, BITS = 0, 1, 2, 8  # kinds of weights; BITS is added to the bits of packed codes
SILU, GELU, GELU_TANH, RELU, RELU_SQUARED = range(5)
INTERLEAVED, UNGATED = 16, 32  # added to the activation: gate and up rows alternate; there is only one first product
ALPHA, LIMIT, OFFSET = range(3)  # numbers of the gate, float32


def address(block: array[int]) -> int:
    """The address of a block of fields; the block must outlive the call."""
    return block.buffer_info()[0]
