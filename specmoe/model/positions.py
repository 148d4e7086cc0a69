"""Rotary positions whose frequencies depend on the longest row: exact while a batch stays on one side of the change.

transformers chooses the frequencies of all rows by the highest position of a pass.  Draft tokens are placed ahead, and
finished rows leave the batch, so a pass here may see another highest position than transformers does.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from transformers import PreTrainedConfig

from specmoe.errors import UnsupportedModelError


def check_positions(config: PreTrainedConfig, shortest_prompt: int, longest_row: int) -> None:
    """Check that no pass of a batch crosses the position at which a model changes its rotary frequencies.

    Args:
        config: the model's (text) config.
        shortest_prompt: tokens of the shortest prompt.
        longest_row: most tokens that a row may hold, including drafted ones.

    Raises:
        UnsupportedModelError: longrope or dynamic NTK positions, and the batch reaches both sides of the change.
    """
    for kind, limit in _changes(config):
        always_after = kind == "longrope" and shortest_prompt > limit
        if longest_row > limit and not always_after:
            raise UnsupportedModelError(
                f"{config.model_type} changes its rotary positions ({kind}) after {limit} tokens, and a row may reach "
                f"{longest_row} with its drafts: shorten the prompts or max_new_tokens by {longest_row - limit}"
            )


def _changes(config: PreTrainedConfig) -> Iterator[tuple[str, int]]:
    """The kind of each length-dependent rotary embedding of a config and its last position before the change."""
    parameters: dict[str, Any] = getattr(config, "rope_parameters", None) or {}
    for rope in [parameters, *(part for part in parameters.values() if isinstance(part, dict))]:
        kind = rope.get("rope_type")
        if kind == "dynamic":
            yield kind, int(config.max_position_embeddings)
        elif kind == "longrope":
            yield kind, int(rope.get("original_max_position_embeddings") or config.max_position_embeddings)
