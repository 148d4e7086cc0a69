"""The batch of a request: prompts rendered, brought to their drawn lengths, tokenised and padded on the left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from workloads.lengths import RequestShape
from workloads.rendering import Rendered, render, words

if TYPE_CHECKING:
    import torch

    from workloads.prompt import Prompt

_JOIN = "\n\n"


@dataclass(frozen=True)
class Batch:
    """``input_ids`` and ``attention_mask`` are long [B, S], padded on the left; ``output_tokens`` has B entries."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    output_tokens: tuple[int, ...]

    def first(self, rows: int) -> Batch:
        """The first ``rows`` rows, or all of them if there are fewer."""
        return self.parts(rows)[0]

    def parts(self, rows: int) -> list[Batch]:
        """The batch in parts of ``rows`` rows, of which the last may have fewer."""
        cuts = [slice(start, start + rows) for start in range(0, len(self.output_tokens), rows)]
        return [Batch(self.input_ids[cut], self.attention_mask[cut], self.output_tokens[cut]) for cut in cuts]


def make(
    prompts: Sequence[Prompt],
    tokenizer: Any,
    shape: RequestShape,
    rows: int,
    offset: int = 0,
    context_tokens: int | None = None,
) -> Batch:
    """The batch of ``rows`` prompts from place ``offset`` of a set on; wraps around at its end.

    With ``prompt_tokens`` every row has exactly its drawn length: a longer prompt is cut before the end of its last
    message (or text); a shorter one is continued with the text of the prompts that follow it, after a blank line.

    Raises:
        ValueError: a row needs more than ``context_tokens``.
    """
    wanted = shape.prompt_lengths(rows, offset)
    new = shape.output_lengths(rows, offset)
    if wanted is None:
        ids = [_whole(prompts[(offset + row) % len(prompts)], tokenizer) for row in range(rows)]
    else:
        ids = [_exactly(length, prompts, offset + row, tokenizer) for row, length in enumerate(wanted)]
    longest = max(len(row) + more for row, more in zip(ids, new, strict=True))
    if context_tokens is not None and longest > context_tokens:
        raise ValueError(
            f"a row of prompt and output takes {longest} tokens, the model has {context_tokens} positions: "
            "set prompt_tokens, lower output_tokens, or choose other prompts"
        )
    return Batch(*pad(ids, tokenizer), tuple(new))


def _whole(prompt: Prompt, tokenizer: Any) -> list[int]:
    rendered = render(prompt, tokenizer)
    return _ids(rendered.body + rendered.end, tokenizer, rendered.special_tokens)


def _exactly(length: int, prompts: Sequence[Prompt], place: int, tokenizer: Any) -> list[int]:
    """``length`` tokens with the beginning and the end of the prompt at ``place``."""
    first: Rendered = render(prompts[place % len(prompts)], tokenizer)
    body = _ids(first.body, tokenizer, first.special_tokens)
    end = _ids(first.end, tokenizer, special_tokens=False)
    while len(body) + len(end) < length:
        place += 1
        body += _ids(_JOIN + words(prompts[place % len(prompts)]), tokenizer, special_tokens=False)
    return (body[: max(0, length - len(end))] + end)[-length:]


def _ids(text: str, tokenizer: Any, special_tokens: bool) -> list[int]:
    return list(tokenizer(text, add_special_tokens=special_tokens)["input_ids"]) if text else []


def pad(rows: Sequence[list[int]], tokenizer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids of different lengths as ids and mask, long [B, S], padded on the left.

    Without a pad token the padding is 0: the mask says what it is.
    """
    import torch

    width = max(map(len, rows))
    fill = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    ids = torch.tensor([[fill] * (width - len(row)) + row for row in rows], dtype=torch.long)
    lengths = torch.tensor([len(row) for row in rows])
    return ids, (torch.arange(width) >= width - lengths[:, None]).long()
