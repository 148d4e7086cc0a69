"""One row of a request to a server: its tokens are reported as they arrive, and their number is checked."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from baselines.endpoint_client import Client, Completion, EndpointError


class LastOf:
    """Calls ``action`` once, when ``count`` rows have reported."""

    def __init__(self, count: int, action: Callable[[], None]) -> None:
        self._missing, self._action, self._lock = count, action, threading.Lock()

    def report(self) -> None:
        with self._lock:
            self._missing -= 1
            if not self._missing:
                self._action()


class Row:
    """A streamed completion of ``length`` tokens.

    Args:
        row: its number in the request.
        length: new tokens asked for.
        payload: the fields of its request.
        encode: the token ids of a text.
        on_tokens: called with (row, number of new tokens) as they arrive.  The tokens of text without ids are counted
            by ``encode``, the last of them when the stream ends.
    """

    def __init__(
        self,
        row: int,
        length: int,
        payload: dict[str, Any],
        encode: Callable[[str], list[int]],
        on_tokens: Callable[[int, int], None],
    ) -> None:
        self._row, self._length, self._payload = row, length, payload
        self._encode, self._on_tokens = encode, on_tokens
        self._reported, self._text = 0, ""

    def run(self, client: Client, first: LastOf) -> Completion:
        """The whole completion; reports to ``first`` once something of it has arrived.

        Raises:
            EndpointError: names the row, and how much of it had arrived.
        """
        started = False

        def arrived(text: str, token_ids: list[int] | None) -> None:
            nonlocal started
            if not (text or token_ids):
                return
            self._count(text, token_ids)
            if not started:
                started = True
                first.report()

        try:
            found = client.stream(self._payload, arrived)
            self._check(found)
        except EndpointError as error:
            raise EndpointError(f"row {self._row}, after {self._reported} of {self._length} tokens: {error}") from error
        if self._reported < self._length:
            self._on_tokens(self._row, self._length - self._reported)
        if not started:
            first.report()
        return found

    def _count(self, text: str, token_ids: list[int] | None) -> None:
        self._text += text
        if token_ids is None:
            count = min(len(self._encode(self._text)), self._length - 1) - self._reported
        else:
            count = len(token_ids)
            if self._reported + count > self._length:
                raise EndpointError("the server sends more tokens than asked: it does not follow max_tokens")
        if count > 0:
            self._reported += count
            self._on_tokens(self._row, count)

    def _check(self, found: Completion) -> None:
        """The server gave as many tokens as asked: by its ids, else its own count, else by why it ended.

        Raises:
            EndpointError: more or fewer.
        """
        if found.token_ids is not None:
            count = len(found.token_ids)
        elif found.counted is not None:
            count = found.counted
        else:
            encoded = len(self._encode(found.text))
            about = encoded <= self._length + max(2, self._length // 8)  # encoding text again may add some
            count = self._length if found.finish_reason == "length" and about else encoded
        if count > self._length:
            raise EndpointError(f"the server sent {count} tokens, more than asked: it does not follow max_tokens")
        if count < self._length:
            raise EndpointError(
                f"the server ended at {count} tokens ({found.finish_reason}): it does not follow ignore_eos; give it a "
                "logit_bias against its stop tokens in the option body"
            )
