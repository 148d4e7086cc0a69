"""A model's tokenizer, or the reason why its folder has none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_VOCABULARIES = ("tokenizer.json", "*.model", "vocab*", "*.tiktoken", "tekken.json", "*.spm")


def load(folder: Path) -> Any:
    """The tokenizer of a checkpoint folder, padding on the left.

    Raises:
        ValueError: the folder has none that transformers can load.
    """
    from transformers import AutoTokenizer

    if folder.is_dir() and not any(file for pattern in _VOCABULARIES for file in folder.glob(pattern)):
        raise _none(folder, "no vocabulary file")  # transformers would make one that knows no words
    try:
        return AutoTokenizer.from_pretrained(folder, padding_side="left")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise _none(folder, " ".join(str(error).split())[:100]) from error


def _none(folder: Path, cause: str) -> ValueError:
    return ValueError(
        f"{folder} holds no tokenizer that transformers can load ({cause}): copy tokenizer.json and "
        "tokenizer_config.json of the model there, or pass token ids to SpecMoE.generate"
    )
