"""The state of a linear-attention layer at each row's committed length, which rejected tokens do not change.

A recurrent state cannot be truncated as keys and values can.  So a pass over several tokens leaves the state as it was
and records what the recurrence needs: convolution inputs, keys, values, decays and step sizes of its own positions.
``advance`` then runs the recurrence alone over each row's accepted tokens; no projection or expert is computed twice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers.cache_utils import LinearAttentionLayer

Rule = Callable[..., tuple[torch.Tensor, torch.Tensor]]
"""transformers' recurrent gated delta rule: (query, key, value, g, beta, ...) -> outputs, state at the end."""


@dataclass(frozen=True)
class LayerState:
    """``conv``: the latest K inputs of the convolution, [B, C, K]; ``recurrent``: [B, heads, key dim, value dim]."""

    conv: torch.Tensor
    recurrent: torch.Tensor

    def select(self, rows: torch.Tensor) -> LayerState:
        """Only ``rows`` (long [B'])."""
        return LayerState(self.conv[rows], self.recurrent[rows])

    def join(self, other: LayerState) -> LayerState:
        """These rows, then those of ``other``."""
        return LayerState(torch.cat([self.conv, other.conv]), torch.cat([self.recurrent, other.recurrent]))


@dataclass(frozen=True)
class DeltaSteps:
    """One pass over Q tokens of each row, from which the state after any number of them follows.

    Attributes:
        start: the state before the pass; ``end`` after all Q tokens.
        inputs: of the convolution, [B, C, Q].
        key, value: [B, Q, heads, dim].
        decay, beta: [B, Q, value heads]; the decay is a logarithm.
        rule: the recurrence.
    """

    start: LayerState
    end: LayerState
    inputs: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    decay: torch.Tensor
    beta: torch.Tensor
    rule: Rule

    def after(self, tokens: torch.Tensor) -> LayerState:
        """The state after the first ``tokens`` (long [B]) of each row."""
        rejected = torch.arange(self.key.shape[1], device=tokens.device) >= tokens[:, None]  # [B, Q]
        _, recurrent = self.rule(
            self.key,  # in place of queries, which the state does not depend on
            self.key,
            self.value,
            g=self.decay.masked_fill(rejected[..., None], 0.0),  # no decay and a step size of 0 keep the state as it is
            beta=self.beta.masked_fill(rejected[..., None], 0.0),
            initial_state=self.start.recurrent,
            output_final_state=True,
            use_qk_l2norm_in_kernel=True,
        )
        inputs = torch.cat([self.start.conv, self.inputs], dim=-1)  # [B, C, K + Q]
        window = tokens[:, None] + torch.arange(self.start.conv.shape[-1], device=tokens.device)  # [B, K]
        return LayerState(inputs.gather(2, window[:, None].expand(-1, inputs.shape[1], -1)), recurrent)


class RecurrentLayer(LinearAttentionLayer):
    """The cache of one linear-attention layer.

    A prompt goes through transformers' own interface, which leaves the state after each row's last token.  Later passes
    read ``state`` and ``record`` their steps; the state follows with ``advance``.  Its tensors are replaced, never
    written to, so whoever holds a ``state`` can go back to it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._steps: DeltaSteps | None = None

    @property
    def state(self) -> LayerState | None:
        """The state at the committed lengths; None before the prompt."""
        conv, recurrent = self.conv_states[0], self.recurrent_states[0]
        return None if conv is None or recurrent is None else LayerState(conv, recurrent)

    def restore(self, state: LayerState | None) -> None:
        """Go back to an earlier ``state``."""
        self._steps = None
        self.has_previous_state[0] = state is not None
        self.conv_states[0] = None if state is None else state.conv
        self.recurrent_states[0] = None if state is None else state.recurrent

    def record(self, steps: DeltaSteps) -> None:
        """Keep the steps of the latest pass for ``advance``."""
        self._steps = steps

    def advance(self, tokens: torch.Tensor, fewest: int) -> None:
        """Move the state over the first ``tokens`` (long [B], ``fewest`` the smallest) of the latest pass."""
        steps = self._steps
        if steps is not None:
            self.restore(steps.end if fewest == steps.key.shape[1] else steps.after(tokens))

    def select(self, rows: torch.Tensor) -> None:
        """Keep only ``rows`` (long [B'])."""
        if self.state is not None:
            self.restore(self.state.select(rows))

    def join(self, other: RecurrentLayer) -> None:
        """Append the rows of ``other``."""
        ours, theirs = self.state, other.state
        self.restore(theirs if ours is None or theirs is None else ours.join(theirs))
