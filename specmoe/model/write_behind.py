"""Writes converted experts, and finishes complete layers, while the next experts are read."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

import torch

from specmoe.model.layer_file import LayerFile, Part
from specmoe.offload.page_memory import PageMemory

_WRITERS = 2  # so that the disk has the next request when one ends
_MOST_WAITING = 2  # experts that are converted and not multiplied yet


class WriteBehind:
    """Threads behind the reader: two write, one multiplies the experts of a layer with each other and finishes it.

    Only the layer under conversion keeps experts in ``memory``; one that is left incomplete gives its memory back.  Use
    as a context manager; ``end`` waits for all work.
    """

    def __init__(self, memory: PageMemory) -> None:
        self._memory = memory
        self._writers, self._finisher = ThreadPoolExecutor(_WRITERS), ThreadPoolExecutor(1)
        self._writing: deque[Future[None]] = deque()
        self._finishing: deque[Future[None]] = deque()
        self._layer: LayerFile | None = None

    def __enter__(self) -> WriteBehind:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for thread in (self._writers, self._finisher):
            thread.shutdown(cancel_futures=error is not None)

    def add(self, layer: LayerFile, expert: int, parts: dict[Part, torch.Tensor]) -> None:
        """Convert an expert, whose ``parts`` may change afterwards, and have it written.

        Raises:
            OSError: the disk is full or not writable.
            UnsupportedModelError: an earlier expert holds NaN or infinite weights.
        """
        if self._layer is not None and self._layer is not layer and not self._layer.complete:
            self._finish(self._layer.forget)
        self._layer = layer
        self._make_room(layer)
        data = layer.convert(expert, parts)
        self._wait_for_writes(_WRITERS - 1)
        written = self._writers.submit(layer.write, expert, data)
        self._writing.append(written)
        multiplied = self._finish(layer.multiply, expert, data)
        multiplied.add_done_callback(lambda _: written.add_done_callback(lambda _: self._memory.give(data)))
        if layer.complete:
            self._finish(layer.finish, list(self._writing))

    def end(self) -> None:
        """Wait until everything is written.  Raises as ``add``."""
        self._wait_for_writes(0)
        while self._finishing:
            self._finishing.popleft().result()

    def _make_room(self, layer: LayerFile) -> None:
        """Wait for earlier experts while memory is short; if that is not enough, this layer gives its memory back."""
        while self._finishing and (len(self._finishing) >= _MOST_WAITING or self._memory.is_full):
            self._finishing.popleft().result()
        if self._memory.is_full:
            self._finish(layer.forget)

    def _wait_for_writes(self, most: int) -> None:
        while len(self._writing) > most:
            self._writing.popleft().result()

    def _finish(self, work: Callable[..., None], *arguments: Any) -> Future[None]:
        self._finishing.append(self._finisher.submit(work, *arguments))
        return self._finishing[-1]
