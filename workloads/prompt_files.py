"""Prompt files: JSON lines of our own form, or Spec-Bench's questions.

Ours: ``id``, and ``text`` or ``messages`` (a list of ``{"role", "content"}``, the last one the user's); ``category``
and ``reference`` if wanted; further members are left alone.  Spec-Bench: ``question_id``, ``category``, ``turns``; the
first turn is the prompt, since later ones follow answers that the file does not hold.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from workloads.prompt import ROLES, Message, Prompt

_MEND = "each line needs 'id' and 'text' or 'messages', or Spec-Bench's 'question_id' and 'turns'"


def read(path: Path, category: str = "general") -> list[Prompt]:
    """Read a file in its order; ``category`` is that of lines which name none.

    Raises:
        ValueError: unreadable, empty, a line that is no prompt, or two lines of one id; names file, line and mend.
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
            raise ValueError(f"{path}:{number} is not a prompt ({error!r}): {_MEND}") from error
        if prompt.id in prompts:
            raise ValueError(f"{path}:{number} has the id {prompt.id!r} of an earlier line: give each its own")
        prompts[prompt.id] = prompt
    if not prompts:
        raise ValueError(f"{path} holds no prompts: {_MEND}")
    return list(prompts.values())


def _prompt(row: dict[str, Any], category: str) -> Prompt:
    reference = row.get("reference")
    kind = str(row.get("category", category))
    if "turns" in row:
        said = (Message("user", _said(row["turns"][0])),)
        return Prompt(str(row["question_id"]), "", said, kind, _first(reference))
    if ("text" in row) == ("messages" in row):
        raise ValueError("one of 'text' and 'messages'")
    if "text" in row:
        return Prompt(str(row["id"]), _said(row["text"]), (), kind, reference)
    return Prompt(str(row["id"]), "", messages(row["messages"]), kind, reference)


def _first(reference: Any) -> str | None:
    """Spec-Bench gives a list with one reference per turn, where it gives any."""
    return str(reference[0]) if isinstance(reference, list) and reference else None


def messages(rows: Any) -> tuple[Message, ...]:
    """Validated messages.

    Raises:
        ValueError: an unknown role, an empty content, or a last message that is not the user's.
    """
    said = []
    for row in rows:
        if row["role"] not in ROLES:
            raise ValueError(f"role {row['role']!r} is none of {', '.join(ROLES)}")
        said.append(Message(row["role"], _said(row["content"])))
    if not said or said[-1].role != "user":
        raise ValueError("the last message is to be the user's")
    return tuple(said)


def _said(text: Any) -> str:
    if not isinstance(text, str) or not text.strip():
        raise ValueError("a text that is empty, or no text")
    return text
