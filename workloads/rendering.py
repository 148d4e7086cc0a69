"""The text of a prompt that the model gets: by the tokenizer's chat template, or in plain form if it has none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workloads.prompt import Message, Prompt

_NAMES = {"system": "System", "user": "User", "assistant": "Assistant"}


@dataclass(frozen=True)
class Rendered:
    """``body`` ends with the prompt's last word; ``end`` is the header of the answer ("" for a text to continue).

    ``special_tokens``: whether the tokenizer should add its own; a chat template has written them already.
    """

    body: str
    end: str
    special_tokens: bool


def render(prompt: Prompt, tokenizer: Any) -> Rendered:
    """A text unchanged; messages by the chat template, or by ``plain`` if the tokenizer has none."""
    if not prompt.messages:
        return Rendered(prompt.text, "", special_tokens=True)
    has_template = bool(getattr(tokenizer, "chat_template", None))
    if has_template:
        turns = [{"role": m.role, "content": m.content} for m in prompt.messages]
        text = str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
    else:
        text = plain(prompt.messages)
    last = prompt.messages[-1].content.strip()  # templates may strip contents
    before, found, after = text.rpartition(last)
    body, end = (before + found, after) if found else (text, "")
    return Rendered(body, end, special_tokens=not has_template)


def plain(messages: tuple[Message, ...]) -> str:
    """``User: ...`` and ``Assistant: ...`` as paragraphs, with ``Assistant:`` at the end for the model to continue."""
    turns = [f"{_NAMES[message.role]}: {message.content}" for message in messages]
    return "\n\n".join([*turns, "Assistant:"])


def whole_text(prompt: Prompt) -> str:
    """The whole prompt without a tokenizer: its text, or its messages in plain form."""
    return prompt.text or plain(prompt.messages)


def words(prompt: Prompt) -> str:
    """The prompt without a template: its text, or its last message."""
    return prompt.text or prompt.messages[-1].content
