"""A prompt: text to continue, or a conversation to answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

HUB = "hf:"
"""Prefix of the names of prompt sets that the ``datasets`` library loads."""
Role = Literal["system", "user", "assistant"]
ROLES: tuple[str, ...] = get_args(Role)


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True)
class Prompt:
    """A ``text`` to continue, or ``messages`` to answer, of which the last is the user's.

    ``reference`` is the expected answer, where there is one; answers are not scored.
    """

    id: str
    text: str = ""
    messages: tuple[Message, ...] = ()
    category: str = "general"
    reference: str | None = None
