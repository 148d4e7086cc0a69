"""Prompts by name: the sets of this package, a file of the user's own, Spec-Bench's questions, a ``datasets`` name.

A set of this package is ``prompts/NAME.jsonl`` with ``prompts/NAME.json`` beside it, which says where it is from.
``questions`` is all sets of questions written for this project, in turns, so that any batch is of mixed kinds.
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
"""Prompts that a set of at least four times as many keeps for calibration; they are never measured."""


@dataclass(frozen=True)
class PromptSet:
    """What a set of this package is.  ``parts`` names the sets it is made of; a set with a file has none."""

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
        ValueError: a set without its description, or with a malformed one.
    """
    sets = {file.stem: _described(file.stem) for file in sorted(FOLDER.glob("*.jsonl"))}
    parts = tuple(name for name, described in sets.items() if described.source == QUESTIONS_SOURCE)
    licence, language = (_all_of([getattr(sets[name], field) for name in parts]) for field in ("licence", "language"))
    title = f"{', '.join(parts)}: one of each in turn"
    sets[MIXED] = PromptSet(MIXED, title, QUESTIONS_SOURCE, licence, language, parts=parts)
    return sets


def _all_of(lists: Sequence[str]) -> str:
    """What is named in any of several comma-separated lists."""
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
    """The JSON lines behind a name: the set's own, the user's, or those exported once from a ``datasets`` name.

    None for the mixed set, which has no file of its own.

    Raises:
        ValueError: no such set or file, or a data set that cannot be had; the message says what to do.
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
        f"no prompts {text!r}: use one of {', '.join(catalogue())}, an existing JSONL file, or hf:NAME:SPLIT:FIELD"
    )


def load(name_or_path: str | Path = DEFAULT) -> list[Prompt]:
    """Read a prompt set in its order.

    Args:
        name_or_path: a name of ``catalogue()``; a JSONL file of prompts (``prompt_files``) or of Spec-Bench's
            questions; or ``hf:NAME[:CONFIG]:SPLIT:FIELD`` for any ``datasets`` name (``prompt_hub``).

    Raises:
        ValueError: there is no such set, or a line of it is no prompt; the message says what to do.
    """
    from workloads import prompt_files

    file = file_of(name_or_path)
    if file is None:
        return _in_turn([load(part) for part in catalogue()[MIXED].parts])
    ours = file.parent == FOLDER
    return prompt_files.read(file, _described(file.stem).category if ours else "general")


def fingerprint(name_or_path: str | Path) -> str:
    """Digits that change with the prompts of a set."""
    return hashlib.sha256(repr(load(name_or_path)).encode()).hexdigest()[:16]


def _in_turn(sets: Sequence[Sequence[Prompt]]) -> list[Prompt]:
    """The first of each, the second of each, and so on; shorter sets run out earlier."""
    return [s[place] for place in range(max(map(len, sets))) for s in sets if place < len(s)]


def measured(prompts: Sequence[Prompt]) -> Sequence[Prompt]:
    """Those of a set that requests are made of: all but the last ``CALIBRATION``, where the set is large enough."""
    return prompts[:-CALIBRATION] if len(prompts) >= 4 * CALIBRATION else prompts


def calibration(prompts: Sequence[Prompt]) -> Sequence[Prompt]:
    """Prompts to profile a model with, never measured: the set's last, or the default set's if it is small."""
    own = prompts[len(measured(prompts)) :]
    return own or load(DEFAULT)[-CALIBRATION:]


def select(count: int, offset: int = 0, name_or_path: str | Path = DEFAULT) -> list[Prompt]:
    """``count`` measured prompts from ``offset`` on, starting over at the end."""
    prompts = measured(load(name_or_path))
    return [prompts[(offset + i) % len(prompts)] for i in range(count)]
