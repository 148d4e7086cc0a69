"""Quantised matrices are near the originals, nearer than plain rounding, and exact where they can be."""

from __future__ import annotations

import pytest
import torch

from specmoe.compute.codes import GROUP, widened
from specmoe.drafting.quantize import quantise

WORST = {2: 0.13, 3: 0.036, 4: 0.0088, 8: 4e-5}
"""Largest mean squared error on normally distributed weights, over their mean square."""


def _error(weight: torch.Tensor, bits: int, importance: torch.Tensor | None = None) -> torch.Tensor:
    return (widened(*quantise(weight, bits, importance), weight.shape[1]) - weight).square()


def _plainly_rounded(weight: torch.Tensor, bits: int) -> torch.Tensor:
    rows = weight.view(-1, GROUP)
    scale = rows.abs().amax(dim=1, keepdim=True) / (2 ** (bits - 1) - 1)
    return ((rows / scale).round() * scale).view(weight.shape)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_errors_are_small_and_below_those_of_plain_rounding(bits: int) -> None:
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(0)) * 0.02
    error = _error(weight, bits).mean()
    assert error < WORST[bits] * weight.square().mean()
    assert error < (_plainly_rounded(weight, bits) - weight).square().mean()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("width", [1, 31, 33, 100])
def test_rows_may_end_inside_a_group(bits: int, width: int) -> None:
    weight = torch.randn(5, width, generator=torch.Generator().manual_seed(width))
    assert _error(weight, bits).mean() < 2 * WORST[bits] * weight.square().mean()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_groups_of_zeros_stay_zero(bits: int) -> None:
    weight = torch.zeros(3, 64)
    weight[1, 40] = -1.0
    error = _error(weight, bits)
    assert error[[0, 2]].max() == 0
    assert error[1, :32].max() == 0


def test_important_inputs_are_nearer() -> None:
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    importance = torch.ones(256)
    importance[::4] = 20.0
    plain, weighted = _error(weight, 3)[:, ::4].mean(), _error(weight, 3, importance)[:, ::4].mean()
    assert weighted < 0.95 * plain


def test_narrow_weights_are_widened_first() -> None:
    weight = torch.randn(4, 64).to(torch.bfloat16)
    assert torch.equal(quantise(weight, 4)[0], quantise(weight.float(), 4)[0])
