"""The attention that a model is configured for: which masks it takes, and which kinds cannot run on a ragged cache."""

from __future__ import annotations

from collections.abc import Iterator

from transformers import PreTrainedConfig

from specmoe.errors import UnsupportedModelError

_BOOLEAN_MASKS = {"sdpa": True, "eager": False}
"""Implementations that take a prepared mask; True where it is boolean, False where it is added to the scores."""


def check_attention(config: PreTrainedConfig) -> None:
    """Check the attention of a config and its parts; an implementation that is not set yet is accepted.

    Raises:
        UnsupportedModelError: an implementation other than sdpa or eager, or text that attends in both directions.
    """
    for part in _parts(config):
        if part._attn_implementation is not None:
            takes_boolean_masks(part)
    text = config.get_text_config()
    bidirectional = getattr(text, "use_bidirectional_attention", None)
    if bidirectional in (True, "all") or not getattr(text, "is_causal", True):
        setting = f"use_bidirectional_attention={bidirectional!r}" if bidirectional else "is_causal=False"
        raise UnsupportedModelError(
            f"{setting} lets tokens attend to later ones, so generating one would change those before it: "
            "use a checkpoint with causal attention"
        )


def takes_boolean_masks(config: PreTrainedConfig) -> bool:
    """Whether a model's configured attention takes boolean masks (sdpa) or additive ones (eager).

    Raises:
        UnsupportedModelError: any other implementation.
    """
    implementation = config._attn_implementation
    if implementation not in _BOOLEAN_MASKS:
        raise UnsupportedModelError(
            f"attention implementation {implementation!r} does not take a prepared mask: set attn_implementation "
            'to "sdpa" or "eager" in config.json'
        )
    return _BOOLEAN_MASKS[implementation]


def _parts(config: PreTrainedConfig) -> Iterator[PreTrainedConfig]:
    yield config
    for name in config.sub_configs:
        part = getattr(config, name, None)
        if isinstance(part, PreTrainedConfig):
            yield from _parts(part)
