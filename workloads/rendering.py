"""From a prompt to the text a model is fed: through the tokenizer's chat template, or plainly where it has none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workloads.prompt import Message, Prompt

_NAMES = {"system": "System", "user": "User", "assistant": "Assistant"}


@dataclass(frozen=True)
class Rendered:
    """``body`` ends with the last word of the prompt; ``end`` is what asks for the answer ("" for a plain text).

    ``special_tokens`` says whether the tokenizer is to add its own, as it does to text that no template made.
    """

    body: str
    end: str
    special_tokens: bool


def render(prompt: Prompt, tokenizer: Any) -> Rendered:
    """A text as it is; messages through the chat template, or plainly (see ``plain``) where there is none."""
    if not prompt.messages:
        return Rendered(prompt.text, "", special_tokens=True)
    has_template = bool(getattr(tokenizer, "chat_template", None))
    if has_template:
        said = [{"role": m.role, "content": m.content} for m in prompt.messages]
        text = str(tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True))
    else:
        text = plain(prompt.messages)
    last = prompt.messages[-1].content.strip()  # templates may strip what they are given
    before, found, after = text.rpartition(last)
    body, end = (before + found, after) if found else (text, "")
    return Rendered(body, end, special_tokens=not has_template)


def plain(messages: tuple[Message, ...]) -> str:
    """``User: ...``, ``Assistant: ...`` in paragraphs, and ``Assistant:`` at the end for the model to go on from."""
    said = [f"{_NAMES[message.role]}: {message.content}" for message in messages]
    return "\n\n".join([*said, "Assistant:"])


def whole_text(prompt: Prompt) -> str:
    """All of a prompt where no tokenizer is at hand: its text, or its messages rendered plainly."""
    return prompt.text or plain(prompt.messages)


def words(prompt: Prompt) -> str:
    """The prompt's own words without any template: its text, or its last message."""
    return prompt.text or prompt.messages[-1].content
