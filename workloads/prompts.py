"""Prompts by name: sets of this package, your own JSONL files, Spec-Bench's questions, or ``datasets`` names.

A set of this package is ``prompts/NAME.jsonl``, described by ``prompts/NAME.json`` beside it.  ``questions``
interleaves all sets of questions written for this project, so that any batch mixes categories.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from workloads.prompt import HUB, Prompt

FOLDER = Path(__file__).parent / "prompts"
DEFAULT = "embedded"
MIXED = "questions"
QUESTIONS_SOURCE = "written for this project"
CALIBRATION = 32
"""Number of prompts that a set reserves for calibration if it has at least four times as many; never measured."""


@dataclass(frozen=True)
class PromptSet:
    """Description of a set of this package; ``parts`` names the sets that a mixed set is made of."""

    name: str
    title: str
    source: str
    licence: str
    language: str
    category: str = "general"
    parts: tuple[str, ...] = ()


def catalogue() -> Mapping[str, PromptSet]:
    """The sets of this package by name, the mixed one last.

    Raises:
        ValueError: a set's description is missing or malformed.
    """
    sets = {file.stem: _described(file.stem) for file in sorted(FOLDER.glob("*.jsonl"))}
    parts = tuple(name for name, described in sets.items() if described.source == QUESTIONS_SOURCE)
    licence, language = (_all_of([getattr(sets[name], field) for name in parts]) for field in ("licence", "language"))
    title = f"{', '.join(parts)}, interleaved"
    sets[MIXED] = PromptSet(MIXED, title, QUESTIONS_SOURCE, licence, language, parts=parts)
    return sets


def _all_of(lists: Sequence[str]) -> str:
    """The union of several comma-separated lists, in order."""
    return ", ".join(dict.fromkeys(item for listed in lists for item in listed.split(", ")))


def _described(name: str) -> PromptSet:
    file = FOLDER / f"{name}.json"
    try:
        return PromptSet(name=name, **json.loads(file.read_text(encoding="utf-8")))
    except (OSError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{file} does not describe the set {name!r} ({error}): give title, source, licence, language and category"
        ) from error


def file_of(name_or_path: str | Path) -> Path | None:
    """The JSON lines file of a name: of a set, your own, or the export of a ``datasets`` name.

    None for the mixed set, which has no file.

    Raises:
        ValueError: the set or file does not exist, or the data set is not available.
    """
    text = str(name_or_path)
    if text == MIXED:
        return None
    if text.startswith(HUB):
        from workloads import prompt_hub

        return prompt_hub.exported(text)
    if (FOLDER / f"{text}.jsonl").is_file():
        return FOLDER / f"{text}.jsonl"
    if Path(text).is_file():
        return Path(text)
    raise ValueError(
        f"unknown prompts {text!r}: use one of {', '.join(catalogue())}, an existing JSONL file, or hf:NAME:SPLIT:FIELD"
    )


def load(name_or_path: str | Path = DEFAULT) -> list[Prompt]:
    """The prompts of a set in its order.

    Args:
        name_or_path: a name of ``catalogue()``; a JSONL file of prompts (``prompt_files``) or of Spec-Bench's
            questions; or ``hf:NAME[:CONFIG]:SPLIT:FIELD`` for any ``datasets`` name (``prompt_hub``).

    Raises:
        ValueError: the set does not exist, or one of its lines is not a prompt.
    """
    from workloads import prompt_files

    file = file_of(name_or_path)
    if file is None:
        return _interleaved([load(part) for part in catalogue()[MIXED].parts])
    ours = file.parent == FOLDER
    return prompt_files.read(file, _described(file.stem).category if ours else "general")


def fingerprint(name_or_path: str | Path) -> str:
    """Sixteen hex digits that change with the prompts of a set."""
    return hashlib.sha256(repr(load(name_or_path)).encode()).hexdigest()[:16]


def _interleaved(sets: Sequence[Sequence[Prompt]]) -> list[Prompt]:
    """The first prompt of each set, the second of each, and so on; shorter sets end earlier."""
    return [s[place] for place in range(max(map(len, sets))) for s in sets if place < len(s)]


def measured(prompts: Sequence[Prompt]) -> Sequence[Prompt]:
    """The prompts that requests use: all but the last ``CALIBRATION`` ones of a large enough set."""
    return prompts[:-CALIBRATION] if len(prompts) >= 4 * CALIBRATION else prompts


def calibration(prompts: Sequence[Prompt]) -> Sequence[Prompt]:
    """Prompts to profile a model with, never measured: the last of the set, or of the default set if it is small."""
    reserved = prompts[len(measured(prompts)) :]
    return reserved or load(DEFAULT)[-CALIBRATION:]


def select(count: int, offset: int = 0, name_or_path: str | Path = DEFAULT) -> list[Prompt]:
    """``count`` measured prompts from ``offset`` on; wraps around at the end of the set."""
    prompts = measured(load(name_or_path))
    return [prompts[(offset + i) % len(prompts)] for i in range(count)]
