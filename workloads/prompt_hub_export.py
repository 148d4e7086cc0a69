"""Writes rows of a data set as prompts; run as a process by ``workloads.prompt_hub``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from specmoe.files import write_text
from workloads.prompt_hub import NO_SUCH, NOT_CACHED, UNREACHABLE, Source


class _Stop(Exception):
    """Ends the process with an exit code and a message."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


def open_rows(source: Source) -> Any:
    """The rows of the source's split, from a folder, the cache or the hub."""
    import datasets
    from huggingface_hub import is_offline_mode

    if Path(source.name).is_dir():
        return _split_of(datasets.load_from_disk(source.name), source)
    if not is_offline_mode():
        _check_hub()
    try:
        return datasets.load_dataset(source.name, source.config, split=source.split)
    except (ConnectionError, ValueError, FileNotFoundError) as error:
        missing = isinstance(error, ConnectionError) or "find cache" in str(error)
        raise _Stop(NOT_CACHED if missing and is_offline_mode() else NO_SUCH, str(error)) from error


def _split_of(loaded: Any, source: Source) -> Any:
    """A saved folder contains splits by name, or the rows of one split."""
    splits = dict(loaded) if isinstance(loaded, dict) else {str(loaded.split or source.split): loaded}
    if source.split not in splits:
        raise _Stop(NO_SUCH, f"no split {source.split!r}: use one of {', '.join(splits)}")
    return splits[source.split]


def _check_hub() -> None:
    """Send one request to the hub: without it, later calls would retry an unreachable hub for minutes."""
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except Exception as error:  # the client's own exceptions: refused, timed out, unknown host
        raise _Stop(UNREACHABLE, f"{constants.ENDPOINT}: {type(error).__name__}") from error


def prompt(number: int, row: Any, source: Source) -> dict[str, Any] | None:
    """A row as a line of a prompt file; None if the field is empty.

    Raises:
        _Stop: the field does not exist, or is neither text nor messages.
    """
    value: Any = row
    for part in source.field.split("."):
        if not isinstance(value, dict) or part not in value:
            raise _Stop(NO_SUCH, f"no field {source.field!r}: the rows have {', '.join(row)}")
        value = value[part]
    line: dict[str, Any] = {"id": f"{source.split}-{number:05d}", "category": source.category}
    if isinstance(value, list):
        return line | {"messages": value}
    if not isinstance(value, str):
        raise _Stop(NO_SUCH, f"field {source.field!r} holds {type(value).__name__}: name a field of text or messages")
    if not value.strip():
        return None
    if source.instruction is None:
        return line | {"text": value}
    return line | {"messages": [{"role": "user", "content": source.instruction.replace("{text}", value)}]}


def main(arguments: list[str]) -> int:
    name, config, split, field, category, instruction, rows, out = arguments
    source = Source(name, config or None, split, field, category, instruction or None)
    try:
        opened = open_rows(source)
        chosen = opened.select(range(min(int(rows), len(opened))))
        lines = [line for number, row in enumerate(chosen) if (line := prompt(number, row, source)) is not None]
    except _Stop as stop:
        print(" ".join(str(stop).split()), file=sys.stderr)
        return stop.code
    write_text(Path(out), "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
