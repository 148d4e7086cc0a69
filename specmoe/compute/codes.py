"""Low-bit weights: codes packed in bytes, with one scale for each group of 32 along a row.

A weight is ``(code - zero_of(bits)) * scale``: codes run from 0 to ``2 ** bits - 1``, half of them negative;
scales are bfloat16.  The 32 codes of a group take ``4 * bits`` bytes, so that shifts of whole vectors unpack them:

* 8 bits: byte k is code k.
* 4 bits: byte k holds code k in its low half and code k + 16 in its high half.
* 2 bits: byte k (0 .. 7) holds codes k, k + 8, k + 16 and k + 24, from its lowest bits up.
* 3 bits: eight bytes with the two low bits as above, then a little-endian word whose bit k is the high bit of code k.

Rows whose length is no multiple of 32 end in a group with unused codes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch

GROUP = 32
Bits = Literal[2, 3, 4, 8]
SCALES = "_scales"
"""Added to a matrix's name, names its scales among the tensors of an expert."""


def zero_of(bits: int) -> float:
    """The code that weight 0 would have: between the middle two."""
    return ((1 << bits) - 1) / 2


def groups(width: int) -> int:
    """Groups of a row of ``width`` weights."""
    return -(-width // GROUP)


def bits_of(codes: torch.Tensor, scales: torch.Tensor) -> int:
    """Bits per code of a matrix: packed codes [R, G * 4 * bits], scales [R, G]."""
    return int(codes.shape[1] // (4 * scales.shape[1]))


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes uint8 [n, 32] as bytes: uint8 [n, 4 * bits]."""
    if bits == 8:
        return codes
    if bits == 4:
        return codes[:, :16] | codes[:, 16:] << 4
    low = codes & 3
    first = low[:, :8] | low[:, 8:16] << 2 | low[:, 16:24] << 4 | low[:, 24:] << 6
    if bits == 2:
        return first
    high = (codes >> 2).unflatten(1, (4, 8)) << torch.arange(8, dtype=torch.uint8, device=codes.device)
    return torch.cat([first, high.sum(dim=2, dtype=torch.uint8)], dim=1)


def unpack(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """The inverse of ``pack``: uint8 [n, 4 * bits] -> [n, 32]."""
    if bits == 8:
        return packed
    if bits == 4:
        return torch.cat([packed & 15, packed >> 4], dim=1)
    codes = torch.cat([packed[:, :8] >> shift & 3 for shift in (0, 2, 4, 6)], dim=1)
    if bits == 2:
        return codes
    places = torch.arange(8, dtype=torch.uint8, device=packed.device)
    return codes | ((packed[:, 8:, None] >> places & 1) << 2).flatten(1)


def widened(codes: torch.Tensor, scales: torch.Tensor, width: int) -> torch.Tensor:
    """A matrix of packed codes [R, G * 4 * bits] and scales bfloat16 [R, G] as float32 [R, width]."""
    bits = bits_of(codes, scales)
    values = unpack(codes.reshape(-1, 4 * bits), bits).float() - zero_of(bits)  # [R * G, 32]
    return (values * scales.float().reshape(-1, 1)).view(len(codes), -1)[:, :width].contiguous()


def widened_expert(tensors: Mapping[str, torch.Tensor], hidden: int) -> dict[str, torch.Tensor]:
    """An expert's copy as float32 weights [out, in] and biases; ``hidden`` is the width of its input."""
    inner = inner_of(tensors)
    found = {}
    for name, tensor in tensors.items():
        if f"{name}{SCALES}" in tensors:
            width = inner if name == "down_proj" else hidden
            found[name] = widened(tensor, tensors[f"{name}{SCALES}"], width)
        elif not name.endswith(SCALES):
            found[name] = tensor
    return found


def inner_of(tensors: Mapping[str, torch.Tensor]) -> int:
    """I, the rows between an expert's two products."""
    return len(tensors["gate_up_proj"]) // 2 if "gate_up_proj" in tensors else len(tensors["up_proj"])
