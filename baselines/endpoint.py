"""Any server with OpenAI's completions interface that its user has started, such as vLLM, llama-server or Ollama.

Every row is a streamed completion of its own, and all are requested at once.  Nothing here limits the server's memory.
"""

from __future__ import annotations

import os
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import suppress
from typing import Any, ClassVar
from urllib.parse import urlsplit

import torch
from pydantic import Field, field_validator
from transformers import AutoTokenizer

from baselines.contract import UNFINISHED, CapabilityCard, Generation, Request, Setting, SystemOptions, prepared
from baselines.counters import Counters
from baselines.endpoint_client import Client, Completion, EndpointError, Refused
from baselines.endpoint_row import LastOf, Row
from baselines.registry import register

_VERSIONS = ("/version", "/api/version", "/props", "/get_server_info")  # vLLM, Ollama, llama-server, SGLang
_GREEDY = {"temperature": 0}
_EXTENSIONS = {
    "ignore_eos": True,
    "return_token_ids": True,
    "skip_special_tokens": False,
    "repetition_penalty": 1.0,
    "cache_prompt": False,
    "stream_options": {"include_usage": True},
}
"""Fields beyond the oldest interface: lengths as asked, token ids, no defaults of the checkpoint, no reused prompts."""


class EndpointOptions(SystemOptions):
    """How to reach a server."""

    base_url: str = Field(description="such as http://127.0.0.1:8000/v1")
    model: str | None = Field(default=None, description="by the server's name for it; default the first it lists")
    api_key_env: str | None = Field(default=None, description="environment variable that holds the server's key")
    timeout_s: float = Field(default=300.0, gt=0, description="longest time in which nothing arrives")
    body: dict[str, Any] = Field(default_factory=dict, description="further fields of every request")

    @field_validator("base_url")
    @classmethod
    def _plain(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("base_url is not an address: write it as http://127.0.0.1:8000/v1")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError("base_url stands in the record: keep keys out of it, and name a variable in api_key_env")
        return url


@register
class EndpointSystem:
    """A running server behind ``base_url``."""

    card: ClassVar[CapabilityCard] = CapabilityCard(
        name="endpoint",
        title="Server",
        summary="a server with OpenAI's completions interface, started by its user",
        grain="unknown",
        knows_budget=False,
        tiers=("gpu", "ram", "disk"),
        devices=("cpu", "cuda"),
        slow_tiers=("disk", "host"),
        limited=False,
        external=True,
    )
    Options = EndpointOptions

    def __init__(self, options: Any) -> None:
        self.options: EndpointOptions = options
        self._client: Client | None = None
        self._tokenizer: Any = None
        self._facts: dict[str, str] = {}
        self._as_ids = True
        self._fields: dict[str, Any] = {}

    def build(self, setting: Setting) -> None:
        """Nothing to make: the server has the model."""

    def prepare(self, setting: Setting) -> None:
        """Reach the server, and find out what it takes.

        Raises:
            EndpointError: it cannot be reached, lacks the model, or refuses a completion.
        """
        self._tokenizer = AutoTokenizer.from_pretrained(setting.model_path)
        client = self._client = Client(self.options.base_url, self._key(), self.options.timeout_s)
        model, owner = self._served(client)
        self._as_ids, self._fields = self._taken(client, model)
        version = _version(client)
        self._facts = {
            "server": " ".join(part for part in (owner, version) if part) or "not stated",
            "model": model,
            "prompts": "token ids" if self._as_ids else "text",
        }

    def _key(self) -> str | None:
        name = self.options.api_key_env
        if name is not None and not os.environ.get(name):
            raise EndpointError(f"api_key_env names {name}, which is not set: export it before the run")
        return None if name is None else os.environ[name]

    def _served(self, client: Client) -> tuple[str, str]:
        """The model's name and its owner, as the server lists them."""
        listed = client.get("/models").get("data") or []
        owners = {str(entry.get("id")): str(entry.get("owned_by") or "") for entry in listed}
        name = self.options.model or next(iter(owners), None)
        if name is None or name not in owners:
            known = ", ".join(owners) or "none"
            raise EndpointError(f"the server does not list the model {name!r} but {known}: name one of them")
        return name, owners[name]

    def _taken(self, client: Client, model: str) -> tuple[bool, dict[str, Any]]:
        """Whether the server takes prompts as token ids, and the fields of a request that it accepts."""
        text = "The quick brown fox"
        ids = self._tokenizer(text)["input_ids"]
        common = {"model": model, **_GREEDY}
        refusal: Refused | None = None
        for as_ids in (True, False):
            for extensions in (_EXTENSIONS, {}):
                fields = common | extensions | self.options.body
                plain = {name: value for name, value in fields.items() if name != "stream_options"}
                try:
                    answer = client.post("/completions", plain | {"prompt": ids if as_ids else text, "max_tokens": 1})
                except Refused as error:
                    refusal = error
                    continue
                read = (answer.get("usage") or {}).get("prompt_tokens", len(ids))
                if not as_ids or read == len(ids):  # others take a list of ids for a list of prompts
                    return as_ids, fields
        raise refusal or EndpointError("the server takes prompts neither as token ids nor as text: use another")

    def generate(self, request: Request) -> Generation:
        client = prepared(self._client)
        first = LastOf(len(request.lengths), request.on_prefill_done)
        rows = [
            Row(row, length, self._fields | {"prompt": prompt, "max_tokens": length}, self.encode, request.on_tokens)
            for row, (length, prompt) in enumerate(zip(request.lengths, self._prompts(request), strict=True))
        ]
        with ThreadPoolExecutor(len(rows), thread_name_prefix="endpoint") as pool:
            running = [pool.submit(row.run, client, first) for row in rows]
            done, _ = wait(running, return_when=FIRST_EXCEPTION)
            failed = next((future for future in running if future in done and future.exception()), None)
            if failed is not None:
                client.cancel()
                failed.result()
        found = [future.result() for future in running]
        return self._generation(request, found)

    def _generation(self, request: Request, found: list[Completion]) -> Generation:
        facts, ids = dict(self._facts), [one.token_ids for one in found]
        given = [row for row in ids if row is not None]
        exact = len(given) == len(found)
        facts["compared"] = "token ids from the server" if exact else "its text, encoded with the model's tokenizer"
        prompt_tokens = [one.prompt_tokens for one in found if one.prompt_tokens is not None]
        if len(prompt_tokens) == len(found) and sum(prompt_tokens) != int(request.attention_mask.sum()):
            facts["prompt_tokens"] = f"{sum(prompt_tokens)} by the server's count"
        if cached := sum(one.cached_tokens or 0 for one in found):
            facts["cached_prompt_tokens"] = str(cached)
        counters = Counters(server=facts)
        if exact:
            return Generation([torch.tensor(row) for row in given], counters)
        texts = [one.text.rstrip(UNFINISHED) for one in found]
        rows = [torch.tensor(self.encode(text), dtype=torch.long) for text in texts]
        return Generation(rows, counters, counts=request.lengths)

    def _prompts(self, request: Request) -> list[Any]:
        """Prompts in the form that the server takes; of text, a first token that it adds itself is left out."""
        rows = [ids[mask.bool()].tolist() for ids, mask in zip(request.input_ids, request.attention_mask, strict=True)]
        if self._as_ids:
            return rows
        kept = [ids[1:] if ids[0] == self._tokenizer.bos_token_id else ids for ids in rows]
        return [self._tokenizer.decode(ids, skip_special_tokens=False) for ids in kept]

    def encode(self, text: str) -> list[int]:
        """Token ids of a continuation."""
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def close(self) -> None:
        self._client = None


def _version(client: Client) -> str:
    """The version at the first known address that states one; empty for none."""
    for path in _VERSIONS:
        with suppress(EndpointError):
            answer = client.get(path, root=True)
            stated = answer.get("version") or answer.get("build_info") if isinstance(answer, dict) else None
            if stated:
                return str(stated)
    return ""
