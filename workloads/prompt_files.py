"""Prompt files: JSON lines of our own form, or Spec-Bench's questions.

Our form: ``id``, and ``text`` or ``messages`` (a list of ``{"role", "content"}``, the last one the user's); optionally
``category`` and ``reference``; other members are ignored.  Spec-Bench: ``question_id``, ``category``, ``turns``; the
first turn is the prompt, because later ones follow answers that the file does not contain.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from workloads.prompt import ROLES, Message, Prompt

_EXPECTED = "each line needs 'id' and 'text' or 'messages', or Spec-Bench's 'question_id' and 'turns'"


def read(path: Path, category: str = "general") -> list[Prompt]:
    """The prompts of a file in its order; ``category`` is the default of lines without one.

    Raises:
        ValueError: the file is unreadable or empty, a line is not a prompt, or two lines have the same id.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read prompts from {path} ({error}): name a JSONL file in UTF-8") from error
    prompts: dict[str, Prompt] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            prompt = _prompt(json.loads(line), category)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}:{number} is not a prompt ({error!r}): {_EXPECTED}") from error
        if prompt.id in prompts:
            raise ValueError(f"{path}:{number} has the id {prompt.id!r} of an earlier line: ids must be unique")
        prompts[prompt.id] = prompt
    if not prompts:
        raise ValueError(f"{path} contains no prompts: {_EXPECTED}")
    return list(prompts.values())


def _prompt(row: dict[str, Any], category: str) -> Prompt:
    reference = row.get("reference")
    kind = str(row.get("category", category))
    if "turns" in row:
        turns = (Message("user", _text(row["turns"][0])),)
        return Prompt(str(row["question_id"]), "", turns, kind, _first(reference))
    if ("text" in row) == ("messages" in row):
        raise ValueError("exactly one of 'text' and 'messages' is needed")
    if "text" in row:
        return Prompt(str(row["id"]), _text(row["text"]), (), kind, reference)
    return Prompt(str(row["id"]), "", messages(row["messages"]), kind, reference)


def _first(reference: Any) -> str | None:
    """Spec-Bench lists one reference per turn, or has none."""
    return str(reference[0]) if isinstance(reference, list) and reference else None


def messages(rows: Any) -> tuple[Message, ...]:
    """Validated messages.

    Raises:
        ValueError: a role is unknown, a content empty, or the last message not the user's.
    """
    valid = []
    for row in rows:
        if row["role"] not in ROLES:
            raise ValueError(f"role {row['role']!r} is not one of {', '.join(ROLES)}")
        valid.append(Message(row["role"], _text(row["content"])))
    if not valid or valid[-1].role != "user":
        raise ValueError("the last message must be the user's")
    return tuple(valid)


def _text(text: Any) -> str:
    if not isinstance(text, str) or not text.strip():
        raise ValueError("the text is empty or not a string")
    return text
