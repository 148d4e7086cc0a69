"""Prompt sets: JSON lines with an ``id`` and a ``text``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

EMBEDDED = Path(__file__).parent / "prompts" / "embedded.jsonl"


@dataclass(frozen=True)
class Prompt:
    """One request's text."""

    id: str
    text: str


def load(path: Path = EMBEDDED) -> list[Prompt]:
    """Read a prompt set in file order.

    Raises:
        ValueError: the file is missing, or a line lacks ``id`` or ``text``.
    """
    if not path.exists():
        raise ValueError(f"no prompt file at {path}: name an existing JSONL file")
    prompts = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            prompts.append(Prompt(str(row["id"]), str(row["text"])))
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{path}:{number} is not a prompt ({error!r}): each line needs 'id' and 'text'") from error
    return prompts


def select(count: int, offset: int = 0, path: Path = EMBEDDED) -> list[Prompt]:
    """``count`` prompts from ``offset`` on, starting over at the end of the set."""
    prompts = load(path)
    return [prompts[(offset + i) % len(prompts)] for i in range(count)]
