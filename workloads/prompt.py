"""What a prompt is: text to continue, or a conversation to answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

HUB = "hf:"
"""Prefix of prompt sets that the ``datasets`` library loads."""
Role = Literal["system", "user", "assistant"]
ROLES: tuple[str, ...] = get_args(Role)


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True)
class Prompt:
    """One request: a ``text`` to go on with, or ``messages`` to answer, the last of them the user's.

    ``reference`` is an answer to compare with, where there is one; nothing here judges answers.
    """

    id: str
    text: str = ""
    messages: tuple[Message, ...] = ()
    category: str = "general"
    reference: str | None = None
