"""A small server with OpenAI's completions interface, with the faults that real ones have."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "sk-secret-1234"
Continue = Callable[[list[int], int], list[int]]
"""Token ids that follow a prompt: (prompt ids, number of tokens)."""


@dataclass
class Behaviour:
    """What the server does; ``fault`` holds for streams whose prompt has ``faulty_tokens`` ids, or for all."""

    tokenizer: Any
    follow: Continue
    takes_ids: bool = True
    gives_ids: bool = True
    gives_usage: bool = True
    takes_extensions: bool = True
    burst: int = 1
    fault: str | None = None
    faulty_tokens: int | None = None
    key: str | None = None
    asked: list[dict[str, Any]] = field(default_factory=list)
    """Every request's body."""


@contextmanager
def serving(behaviour: Behaviour) -> Iterator[str]:
    """Serve on the loopback; gives ``base_url``."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(behaviour))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(behaviour: Behaviour) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: Any) -> None:
            pass

        def answer(self, status: int, payload: Any) -> None:
            body = json.dumps(payload).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            if self.path == "/v1/models":
                self.answer(200, {"data": [{"id": "tiny", "owned_by": "stand-in"}]})
            elif self.path == "/version":
                self.answer(200, {"version": "1.2.3"})
            else:
                self.answer(404, {"detail": "Not Found"})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            behaviour.asked.append(body)
            if behaviour.key and self.headers.get("Authorization") != f"Bearer {behaviour.key}":
                shown = self.headers.get("Authorization", "").removeprefix("Bearer ")
                return self.answer(401, {"error": {"message": f"Incorrect API key provided: {shown}"}})
            if isinstance(body["prompt"], list) and not behaviour.takes_ids:
                return self.answer(422, {"detail": "prompt: input should be a valid string"})
            if "return_token_ids" in body and not behaviour.takes_extensions:
                return self.answer(400, {"error": {"message": "Unrecognized request argument: return_token_ids"}})
            text = isinstance(body["prompt"], str)
            ids = behaviour.tokenizer(body["prompt"])["input_ids"] if text else body["prompt"]
            return self.stream(body, ids) if body.get("stream") else self.whole(body, ids)

        def whole(self, body: dict[str, Any], ids: list[int]) -> None:
            new = behaviour.follow(ids, body["max_tokens"])
            usage = {"prompt_tokens": len(ids), "completion_tokens": len(new)}
            self.answer(200, {"choices": [{"text": behaviour.tokenizer.decode(new)}], "usage": usage})

        def stream(self, body: dict[str, Any], ids: list[int]) -> None:
            faulty = behaviour.faulty_tokens in (None, len(ids))
            fault = behaviour.fault if faulty else None
            if fault in ("429", "500"):
                return self.answer(int(fault), {"error": {"message": "no slot is free"}})
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            with suppress(BrokenPipeError, ConnectionResetError):
                self.events(body, ids, fault)
            self.close_connection = True
            return None

        def events(self, body: dict[str, Any], ids: list[int], fault: str | None) -> None:
            asked = body["max_tokens"]
            new = behaviour.follow(ids, asked + 3 if fault == "more" else asked - 2 if fault == "early" else asked)
            for start in range(0, len(new), behaviour.burst):
                if fault == "stall" and start:
                    for _ in range(40):
                        self.send(": ping\n\n")
                        time.sleep(0.05)
                if fault == "cut" and start:
                    return None
                if fault == "error" and start:
                    return self.event({"error": {"message": "out of memory"}})
                part = new[start : start + behaviour.burst]
                known = behaviour.tokenizer.decode(new[:start])
                text = behaviour.tokenizer.decode(new[: start + len(part)])[len(known) :]
                self.event({"choices": [{"text": text, **({"token_ids": part} if self.ids(body) else {})}]})
            self.event({"choices": [{"text": "", "finish_reason": "stop" if fault == "early" else "length"}]})
            if behaviour.gives_usage and "stream_options" in body:
                self.event({"choices": [], "usage": {"prompt_tokens": len(ids), "completion_tokens": len(new)}})
            self.send("data: [DONE]\n\n")
            self.wfile.write(b"0\r\n\r\n")
            return None

        def ids(self, body: dict[str, Any]) -> bool:
            return behaviour.gives_ids and bool(body.get("return_token_ids"))

        def event(self, payload: Any) -> None:
            self.send(f"data: {json.dumps(payload)}\n\n")

        def send(self, text: str) -> None:
            data = text.encode()
            self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
            self.wfile.flush()

    return Handler
