"""Low-bit copies of experts on the device, beside the slots of full ones: how many, whose, and their loads."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence

import torch

from specmoe.errors import BudgetError, StoreError
from specmoe.offload.arena import Key
from specmoe.offload.link import Mover
from specmoe.offload.placement import IN_TRANSIT
from specmoe.offload.store import ExpertStore
from specmoe.offload.transfers import Transfer

Weights = dict[str, torch.Tensor]


def most_copies(copies: ExpertStore, experts: Sequence[int], full: ExpertStore, budget_bytes: int) -> list[int]:
    """Copies per layer that the budget holds beside ``IN_TRANSIT`` full experts: all, or an equal number.

    ``experts``: how many of each layer's experts may need one; 0 for layers that never draft.

    Raises:
        BudgetError: not even one per layer.
    """
    strides = [spec.stride_bytes for spec in copies.layers]
    kept = min(IN_TRANSIT, full.total_experts) * full.slot_bytes

    def needed(most: int) -> int:
        return sum(min(most, n) * stride for n, stride in zip(experts, strides, strict=True))

    most = max(experts, default=0)
    while most > 1 and needed(most) + kept > budget_bytes:
        most -= 1
    if needed(most) + kept > budget_bytes:
        layers = sum(n > 0 for n in experts)
        raise BudgetError(
            f"expert budget of {budget_bytes} bytes cannot hold one low-bit copy for each of {layers} layers "
            f"({needed(most)} bytes) and {kept // full.slot_bytes} full experts of {full.slot_bytes} bytes: raise "
            f"expert_budget to {needed(most) + kept} bytes or more (all copies take {needed(max(experts))}), lower "
            "draft_bits, or choose another draft_pool"
        )
    return [min(most, n) for n in experts]


class Copies:
    """The copies on the device; the only way to their weights.

    Copies are loaded behind everything a target pass demands, and waited for when a draft first needs them.

    Args:
        store: of the copies; the link knows them by ids from the layer's number of experts on.
        memory: uint8, ``bytes_of(store, room)`` of the expert budget.
        room: most copies of each layer at a time.
        views: turns the tensors of ``store`` into those of the kernels.
    """

    def __init__(
        self,
        store: ExpertStore,
        memory: torch.Tensor,
        link: Mover,
        room: Sequence[int],
        views: Callable[[Weights], Weights],
    ) -> None:
        self.version = [0] * len(room)
        """A number per layer that changes whenever the set of its copies does."""
        self._store, self._link, self._views, self._room = store, link, views, list(room)
        self._slots: list[list[torch.Tensor]] = []
        at = 0
        for spec, count in zip(store.layers, room, strict=True):
            ends = [at + (i + 1) * spec.stride_bytes for i in range(count)]
            self._slots.append([memory[end - spec.stride_bytes : end] for end in ends])
            at = ends[-1] if ends else at
        self._place: list[dict[int, int]] = [{} for _ in room]
        self._weights: dict[Key, Weights] = {}
        self._loading: dict[Key, Transfer] = {}

    @staticmethod
    def bytes_of(store: ExpertStore, room: Sequence[int]) -> int:
        """Bytes of the budget that so many copies per layer take."""
        return sum(count * spec.stride_bytes for spec, count in zip(store.layers, room, strict=True))

    def covers(self, layer: int) -> bool:
        """Whether every expert of the layer has a copy, so that no substitute is needed."""
        return self._room[layer] == self._store.layers[layer].experts

    def held(self, layer: int) -> set[int]:
        """Experts of the layer whose copies are on the device or on their way."""
        return set(self._place[layer])

    def hold_all(self, layer: int) -> None:
        """Keep the copies of all experts of a layer that has room for them."""
        if len(self._place[layer]) < self._room[layer]:
            self.hold(layer, range(self._room[layer]))

    def hold(self, layer: int, experts: Iterable[int]) -> None:
        """Keep these experts' copies and no others, as many as there is room for; missing ones begin to load."""
        wanted = list(experts)[: self._room[layer]]
        place = self._place[layer]
        missing = [expert for expert in wanted if expert not in place]
        if not missing:
            return
        for expert in set(place) - set(wanted):
            self._arrived((layer, expert))  # its slot must not be written any more
            del place[expert]
            self._weights.pop((layer, expert), None)
        free = sorted(set(range(self._room[layer])) - set(place.values()))
        beyond = self._store.layers[layer].experts
        for expert, index in zip(missing, free, strict=False):
            place[expert] = index
            transfer = self._link.submit(layer, beyond + expert, self._slots[layer][index], ahead=True)
            self._loading[layer, expert] = transfer
        self.version[layer] += 1

    def ready(self, layer: int) -> list[int]:
        """Experts of the layer with a copy, ascending, once all of them have arrived.

        Raises:
            StoreError: a copy is damaged or cannot be read.
        """
        for expert in list(self._place[layer]):
            self._arrived((layer, expert))
        return sorted(self._place[layer])

    def wait(self) -> None:
        """Wait for all copies under way.

        Raises:
            StoreError: as ``ready``.
        """
        for key in list(self._loading):
            self._arrived(key)

    def weights(self, layer: int, expert: int) -> Weights:
        """An expert's copy: packed codes, scales, and biases in float32, as views into its memory."""
        self._arrived((layer, expert))
        found = self._weights.get((layer, expert))
        if found is None:
            slot = self._slots[layer][self._place[layer][expert]]
            found = self._weights[layer, expert] = self._views(self._store.tensors(layer, slot))
        return found

    def reset(self) -> None:
        """Forget all copies, as after loading."""
        for key in list(self._loading):
            with contextlib.suppress(StoreError, OSError):
                self._arrived(key)
        self._weights.clear()
        for layer, place in enumerate(self._place):
            place.clear()
            self.version[layer] += 1

    def _arrived(self, key: Key) -> None:
        transfer = self._loading.pop(key, None)
        if transfer is None:
            return
        self._link.promote(transfer)
        try:
            self._link.wait(transfer)
        except (StoreError, OSError) as error:
            self._place[key[0]].pop(key[1], None)
            self.version[key[0]] += 1
            path = self._store.path
            raise StoreError(f"low-bit copies are damaged ({error}): delete {path}, it will be rebuilt") from error
