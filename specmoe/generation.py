"""Generation settings: merged as transformers' ``generate`` does, and refused where this engine cannot follow them.

A setting comes from the call, else from the call's ``generation_config``, else from the model's (loaded from
``generation_config.json``), else it has transformers' default.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PreTrainedModel

from specmoe.errors import OptionError, UnsupportedModelError


class FromConfig:
    """As the stop tokens' default: take them from the generation config (None means no stop tokens)."""


StopTokens = int | list[int] | type[FromConfig] | None

FILE = "generation_config.json"

DEFAULTS: dict[str, Any] = {"do_sample": False, "temperature": 1.0, "top_k": 50, "top_p": 1.0}
"""transformers' defaults of the settings that this engine follows; others are None by default."""

_FOLLOWED = {*DEFAULTS, "min_p", "max_new_tokens", "max_length", "eos_token_id", "pad_token_id"}

# Settings without effect on the tokens of a decoder that generates one sequence per row without beams.
_IGNORED = {
    "assistant_confidence_threshold",
    "assistant_early_exit",
    "assistant_ensemble_weight",
    "assistant_lookbehind",
    "bos_token_id",
    "compile_config",
    "continuous_batching_config",
    "decoder_start_token_id",
    "disable_compile",
    "diversity_penalty",
    "early_stopping",
    "is_assistant",
    "length_penalty",
    "low_memory",
    "max_cache_len",
    "max_matching_ngram_size",
    "num_assistant_tokens",
    "num_assistant_tokens_schedule",
    "num_beam_groups",
    "prefill_chunk_size",
    "prompt_lookup_num_tokens",
    "renormalize_logits",
    "return_dict_in_generate",
    "speculation_type",
    "target_lookbehind",
    "transformers_version",
    "use_cache",
    "use_mtp",
}

# Values of other settings that change nothing; each also accepts None, and a setting not listed here nothing else.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "begin_suppress_tokens": ([],),
    "cache_implementation": ("dynamic", "static", "offloaded", "offloaded_static", "hybrid", "sliding_window"),
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1.0,),
    "epsilon_cutoff": (0.0,),
    "eta_cutoff": (0.0,),
    "guidance_scale": (1.0,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "no_repeat_ngram_size": (0,),
    "num_beams": (1,),
    "num_return_sequences": (1,),
    "output_attentions": (False,),
    "output_hidden_states": (False,),
    "output_logits": (False,),
    "output_scores": (False,),
    "penalty_alpha": (0.0,),
    "remove_invalid_values": (False,),
    "repetition_penalty": (1.0,),
    "suppress_tokens": ([],),
    "token_healing": (False,),
    "typical_p": (1.0,),
}
_ONLY_SAMPLING = {"epsilon_cutoff", "eta_cutoff", "top_h", "typical_p"}


def load_generation_config(folder: Path) -> GenerationConfig:
    """The generation config of a checkpoint folder; without a file of its own, that of ``config.json``.

    Raises:
        UnsupportedModelError: a file that is not valid.
    """
    if not (folder / FILE).exists():  # config.json was valid when the model was built
        return GenerationConfig.from_pretrained(folder, config_file_name="config.json", _from_model_config=True)
    try:
        return GenerationConfig.from_pretrained(folder)
    except (OSError, ValueError, TypeError) as error:
        cause = " ".join(str(error).split())[:120]
        raise UnsupportedModelError(f"{folder / FILE} is not valid ({cause}): correct or remove it") from error


def merge(
    model: GenerationConfig,
    call: GenerationConfig | None,
    settings: dict[str, Any],
    eos_token_id: StopTokens = FromConfig,
    is_encoder_decoder: bool = False,
    **named: Any,
) -> dict[str, Any]:
    """Every setting of one call by name.

    Args:
        model: the model's settings.
        call: the call's ``generation_config``.
        settings: further arguments of the call, of which None counts as given.
        eos_token_id: the call's stop tokens.
        is_encoder_decoder: whether the model has an encoder; then it follows ``forced_bos_token_id`` too.
        named: arguments of the call of which None counts as not given.

    Raises:
        OptionError: an unknown setting, or a value that would change the tokens and is not supported.
    """
    settings = settings | {name: value for name, value in named.items() if value is not None}
    if eos_token_id is not FromConfig:
        settings["eos_token_id"] = eos_token_id
    names = [name for name in vars(GenerationConfig()) if not name.startswith("_")]
    if unknown := sorted(set(settings) - set(names)):
        raise OptionError(f"generate has no setting {unknown[0]!r}: use the fields of transformers' GenerationConfig")
    merged = {name: _first(getattr(call, name, None), getattr(model, name, None), DEFAULTS.get(name)) for name in names}
    merged |= settings
    followed = _FOLLOWED | {"forced_bos_token_id"} if is_encoder_decoder else _FOLLOWED
    for name, value in merged.items():
        ignored = name in _IGNORED or (name in _ONLY_SAMPLING and not merged["do_sample"])
        if name not in followed and not ignored and not _is_neutral(name, value):
            neutral = _NEUTRAL.get(name, (None,))[0]
            raise OptionError(
                f"generation setting {name}={str(value)[:60]} is not supported: pass {name}={neutral!r} to generate, "
                f"or remove it from {FILE} or config.json"
            )
    return merged


def plain_settings(is_encoder_decoder: bool = False) -> dict[str, Any]:
    """Settings of greedy generation without stop tokens, whatever the model's generation config holds.

    An encoder-decoder's rows begin as its generation config says: with its start token and forced first token.
    """
    names = [name for name in vars(GenerationConfig()) if not name.startswith("_")]
    neutral = {name: _NEUTRAL.get(name, (None,))[0] for name in names if name not in _FOLLOWED | _IGNORED}
    if is_encoder_decoder:
        del neutral["forced_bos_token_id"]
    return {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, **neutral}


def plain_config(model: PreTrainedModel) -> GenerationConfig:
    """``plain_settings`` for transformers' ``generate``: what is left of a model's generation config."""
    if not model.config.is_encoder_decoder:
        return GenerationConfig()
    kept = ("decoder_start_token_id", "bos_token_id", "forced_bos_token_id")
    return GenerationConfig(**{name: getattr(model.generation_config, name) for name in kept})


def _is_neutral(name: str, value: Any) -> bool:
    return value is None or any(value == neutral for neutral in _NEUTRAL.get(name, ()))


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)
