"""Tensors that say they are on a GPU and are computed on the CPU: where the engine mixes devices, torch would raise.

An operation whose tensors are on both devices raises as on a GPU, and so does ``numpy()``.  This is what a machine
without a GPU can test of the code that runs there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from tests.specmoe.offload.fake_device import FakeDevice

GPU = torch.device("cuda", 0)
aten = torch.ops.aten


class OnGpu(torch.Tensor):
    """A tensor of the pretended GPU; ``host`` is the CPU tensor that holds its values."""

    host: torch.Tensor

    @staticmethod
    def __new__(cls, host: torch.Tensor) -> OnGpu:
        made: OnGpu = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, host.shape, strides=host.stride(), storage_offset=host.storage_offset(), dtype=host.dtype, device=GPU
        )
        made.host = host
        return made

    def __repr__(self, **_: Any) -> str:
        return f"OnGpu({self.host!r})"

    def numpy(self, **_: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    def data_ptr(self) -> int:
        return self.host.data_ptr()

    def tolist(self) -> Any:
        return self.host.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})


def _tensors(values: Any) -> Iterator[torch.Tensor]:
    if isinstance(values, torch.Tensor):
        yield values
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _tensors(value)
    elif isinstance(values, dict):
        yield from _tensors(list(values.values()))


def compute(func: Any, args: Any, kwargs: Any) -> Any:
    """One operation on the CPU, its results on the device that they would be on."""
    given = list(_tensors([args, kwargs]))
    on_gpu = [t for t in given if isinstance(t, OnGpu)]
    device = kwargs.get("device")
    moved = func in (aten._to_copy.default, aten.copy_.default)
    if on_gpu and not moved:
        strangers = [t for t in given if not isinstance(t, OnGpu) and t.ndim > 0]
        indexes = func in (aten.index.Tensor, aten.index_put_.default, aten.index_put.default)
        if strangers and not (indexes and isinstance(args[0], OnGpu)):  # a CPU index of a GPU tensor is allowed
            raise RuntimeError(f"{func}: Expected all tensors to be on the same device, but found cuda:0 and cpu")
    if device is not None:
        result_on_gpu = torch.device(device).type == "cuda"
        kwargs = kwargs | {"device": torch.device("cpu")}
    elif func is aten.copy_.default:
        result_on_gpu = isinstance(args[0], OnGpu)
    else:
        result_on_gpu = bool(on_gpu)

    def unwrap(value: Any) -> Any:
        return value.host if isinstance(value, OnGpu) else value

    held = {id(t.host): t for t in on_gpu}

    def wrap(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or isinstance(value, OnGpu):
            return value
        known = held.get(id(value))  # what an operation in place returns
        return OnGpu(value) if known is None else known

    result = func(*tree_map(unwrap, args), **tree_map(unwrap, kwargs))
    return tree_map(wrap, result) if result_on_gpu else result


class _Mode(TorchDispatchMode):
    """Makes tensors that are asked for on a GPU."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})


@contextmanager
def pretended_gpu() -> Iterator[None]:
    """In the block, torch makes tensors on ``cuda`` although there is none."""
    with mock.patch("torch.cuda._lazy_init", return_value=None), _Mode():
        yield


class PretendedGpu(FakeDevice):
    """The fake device with slots on the pretended GPU."""

    torch_device = GPU

    def allocate(self, nbytes: int) -> torch.Tensor:
        return OnGpu(super().allocate(nbytes))

    def upload(self, source: torch.Tensor, slot: torch.Tensor, after: Any = None) -> Any:
        assert isinstance(slot, OnGpu)
        return super().upload(source, slot.host, after)


def to_gpu(model: torch.nn.Module) -> None:
    """Move a loaded model; parameters on ``meta`` stay there."""
    for module in model.modules():
        for name, value in [*module._parameters.items(), *module._buffers.items()]:
            if value is None or value.device.type == "meta":
                continue
            held = OnGpu(value.detach())
            if name in module._parameters:
                module._parameters[name] = torch.nn.Parameter(held, requires_grad=False)
            else:
                module._buffers[name] = held
