"""A client of OpenAI-compatible servers: JSON requests and streamed completions, over the standard library's HTTP."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

OnPart = Callable[[str, list[int] | None], None]
"""Called with (text, its token ids or None) of each part of a stream as it arrives."""

_MESSAGE_CHARS = 200
_FIXES = {
    401: "name the environment variable with its key in api_key_env",
    403: "name the environment variable with its key in api_key_env",
    404: "give base_url as far as /v1, and the model by the name that the server uses",
    429: "it takes no more requests at once: use a smaller batch, or raise its limit",
}


class EndpointError(RuntimeError):
    """A server that cannot be reached, or answers otherwise than asked; the message names cause and fix."""


class Refused(EndpointError):
    """A status of 400, 404, 415 or 422: the server does not take such a request."""


@dataclass
class Completion:
    """What a stream held; ``token_ids`` is None where a part with text came without its ids.

    ``counted`` and ``prompt_tokens`` are the server's own counts, ``cached_tokens`` those of the prompt that it had
    computed before.
    """

    text: str = ""
    token_ids: list[int] | None = field(default_factory=list)
    finish_reason: str | None = None
    counted: int | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None

    def read(self, event: dict[str, Any]) -> tuple[str, list[int] | None]:
        """Take in one event of the stream; returns its text, and its token ids if it has any."""
        usage = event.get("usage") or {}
        self.counted = usage.get("completion_tokens", self.counted)
        self.prompt_tokens = usage.get("prompt_tokens", self.prompt_tokens)
        self.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", self.cached_tokens)
        choice: dict[str, Any] = next(iter(event.get("choices") or []), {})
        text, ids = choice.get("text") or "", choice.get("token_ids")
        self.text += text
        self.finish_reason = choice.get("finish_reason") or self.finish_reason
        if self.token_ids is not None and (ids or text):
            self.token_ids = None if ids is None else self.token_ids + ids
        return text, ids


class Client:
    """Talks to one server; streams may run in threads of their own, and ``cancel`` ends them all.

    Args:
        base_url: such as ``http://127.0.0.1:8000/v1``.
        key: sent as a bearer token, and never shown in a message.
        timeout_s: the longest time without anything new.
    """

    def __init__(self, base_url: str, key: str | None, timeout_s: float) -> None:
        self._url, self._key, self._timeout_s = urlsplit(base_url.rstrip("/")), key, timeout_s
        self._open: set[http.client.HTTPConnection] = set()
        self._lock, self._cancelled = threading.Lock(), False

    def get(self, path: str, root: bool = False) -> Any:
        """The JSON at ``path`` below ``base_url``, or below the server's root.

        Raises:
            EndpointError: the server cannot be reached, or answers with an error or without JSON.
        """
        with self._answer("GET", ("" if root else self._url.path) + path, None) as response:
            return self._json(response.read())

    def post(self, path: str, payload: dict[str, Any]) -> Any:
        """The JSON with which the server answers ``payload``; raises as ``get``."""
        with self._answer("POST", self._url.path + path, payload) as response:
            return self._json(response.read())

    def stream(self, payload: dict[str, Any], on_part: OnPart) -> Completion:
        """Stream one completion.

        Raises:
            EndpointError: as ``get``, or the stream stalls, is cut, or holds an error.
        """
        found, ended = Completion(), False
        with self._answer("POST", self._url.path + "/completions", payload | {"stream": True}) as response:
            for data in self._events(response):
                if data == "[DONE]":
                    ended = True
                    break
                event = self._json(data)
                if event.get("error"):
                    raise EndpointError(f"the server reports {self._message(event)!r}: read its log")
                on_part(*found.read(event))
        if not ended and found.finish_reason is None:
            raise EndpointError("the server cut the stream: read its log")
        return found

    def cancel(self) -> None:
        """End all open streams; each raises."""
        with self._lock:
            self._cancelled = True
            for connection in self._open:
                if connection.sock is not None:
                    with suppress(OSError):
                        connection.sock.shutdown(socket.SHUT_RDWR)

    @contextmanager
    def _answer(self, method: str, path: str, payload: dict[str, Any] | None) -> Iterator[http.client.HTTPResponse]:
        """The response with status 200 to one request; network errors within the block become ``EndpointError``."""
        kind = http.client.HTTPSConnection if self._url.scheme == "https" else http.client.HTTPConnection
        connection = kind(str(self._url.hostname), self._url.port, timeout=self._timeout_s)
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {})
        try:
            with closing(connection):
                with self._lock:
                    self._open.add(connection)
                connection.connect()
                if self._cancelled:
                    raise EndpointError("cancelled")
                connection.request(method, path, None if payload is None else json.dumps(payload), headers)
                response = connection.getresponse()
                if response.status != 200:
                    raise self._refusal(path, response)
                yield response
        except TimeoutError as error:
            raise self._stalled() from error
        except http.client.HTTPException as error:
            raise EndpointError(f"the server cut the stream ({type(error).__name__}): read its log") from error
        except OSError as error:
            address = f"{self._url.hostname}:{self._url.port or ''}"
            reason = error.strerror or type(error).__name__
            raise EndpointError(
                f"no answer from {address} ({reason}): start the server, or correct base_url"
            ) from error
        finally:
            with self._lock:
                self._open.discard(connection)

    def _events(self, response: http.client.HTTPResponse) -> Iterator[str]:
        """The data of each event, one line each; comments, with which servers keep a connection open, are no news."""
        news = time.monotonic()
        while line := response.readline():
            if line.startswith(b"data:"):
                news = time.monotonic()
                yield line[5:].strip().decode("utf-8", errors="replace")
            elif time.monotonic() - news > self._timeout_s:
                raise self._stalled()

    def _stalled(self) -> EndpointError:
        return EndpointError(f"the server sent nothing new for {self._timeout_s:g} s: raise timeout_s, or read its log")

    def _refusal(self, path: str, response: http.client.HTTPResponse) -> EndpointError:
        """The error for a status other than 200; the key is masked where the server repeats it."""
        status, body = response.status, response.read(100_000)
        try:
            said = self._message(json.loads(body))
        except ValueError:
            said = body.decode("utf-8", errors="replace")
        said = " ".join(said.split())[:_MESSAGE_CHARS]
        fix = _FIXES.get(status, "read its log" if status >= 500 else "correct the options of the endpoint")
        text = self._masked(
            f"the server answers {path} with {status} {response.reason} ({said or 'no message'}): {fix}"
        )
        return Refused(text) if status in (400, 404, 415, 422) else EndpointError(text)

    def _json(self, data: bytes | str) -> Any:
        try:
            return json.loads(data)
        except ValueError as error:
            shown = data if isinstance(data, str) else data.decode("utf-8", errors="replace")
            raise EndpointError(
                f"the server answers without JSON ({self._masked(shown[:60])!r}): base_url must end where its OpenAI "
                "interface begins, such as http://127.0.0.1:8000/v1"
            ) from error

    def _message(self, payload: Any) -> str:
        """What an error object says, in the forms that servers use."""
        inner = payload.get("error", payload) if isinstance(payload, dict) else payload
        if isinstance(inner, dict):
            inner = inner.get("message") or inner.get("detail") or inner
        return self._masked(str(inner))

    def _masked(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text
