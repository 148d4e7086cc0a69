"""Tensors that say they are on a GPU and are computed on the CPU; where devices are mixed they raise, as torch would.

This is what a machine without a GPU can test of the code that runs there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from tests.specmoe.offload.fake_device import FakeDevice

GPU = torch.device("cuda", 0)
_T = torch.Tensor
_MOVES = {_T.to, _T.cpu, _T.copy_, _T.type_as}
"""What may have tensors of both devices."""


def plain(tensor: torch.Tensor) -> torch.Tensor:
    """The CPU tensor that holds the values of a tensor on either device."""
    with torch._C.DisableTorchFunctionSubclass():
        return tensor.as_subclass(torch.Tensor)


class OnGpu(torch.Tensor):
    """A tensor of the pretended GPU."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func == _T.device.__get__:
            return GPU
        if func == _T.is_cuda.__get__:
            return True
        if func is _T.numpy and kwargs.get("force"):
            return plain(args[0]).numpy()
        if func in (_T.numpy, _T.__array__):
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        if func is _T.cpu or (func is _T.to and _target(args[1:], kwargs) == "cpu"):
            return plain(args[0]).clone().to(*_without_devices(args[1:]), **_without_devices(kwargs))
        _check(func, args, kwargs)
        moved = _on_cpu(args, kwargs)
        return super().__torch_function__(func, types, *moved)


def _on_cpu(args: Any, kwargs: Any) -> tuple[Any, Any]:
    """The arguments with every mention of the pretended GPU turned into the CPU."""
    cpu = torch.device("cpu")
    swap: Callable[[Any], Any] = lambda v: cpu if _is_gpu(v) else v  # noqa: E731
    return tuple(map(swap, args)), {name: swap(value) for name, value in kwargs.items()}


def _is_gpu(value: Any) -> bool:
    return (isinstance(value, torch.device) and value.type == "cuda") or (
        isinstance(value, str) and value.startswith("cuda")
    )


def _target(args: Any, kwargs: Any) -> str | None:
    """The type of the device that a call of ``to`` names; None if it names none."""
    for value in [*args, *kwargs.values()]:
        if isinstance(value, torch.device | str):
            return torch.device(value).type
        if isinstance(value, torch.Tensor):
            return value.device.type
    return None


def _without_devices(values: Any) -> Any:
    """Arguments of ``to`` without a device; a tensor that gives device and dtype is replaced by its dtype."""
    if isinstance(values, dict):
        return {n: v for n, v in values.items() if not isinstance(v, torch.device | str)}
    return [v.dtype if isinstance(v, torch.Tensor) else v for v in values if not isinstance(v, torch.device | str)]


def _tensors(values: Any) -> Iterator[torch.Tensor]:
    if isinstance(values, torch.Tensor):
        yield values
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _tensors(value)
    elif isinstance(values, dict):
        yield from _tensors(list(values.values()))


def _check(func: Any, args: Any, kwargs: Any) -> None:
    """Raise where torch would: tensors of both devices, unless one is a number or an index."""
    if func in _MOVES:
        return
    given = args[:1] + args[2:] if func in (_T.__getitem__, _T.__setitem__) and isinstance(args[0], OnGpu) else args
    with torch._C.DisableTorchFunctionSubclass():
        found = {isinstance(t, OnGpu) for t in _tensors([given, kwargs]) if t.ndim > 0}
    if len(found) > 1:
        raise RuntimeError(f"{func}: Expected all tensors to be on the same device, but found cuda:0 and cpu")


class PretendedCuda(TorchFunctionMode):
    """In the block, torch makes and moves tensors on ``cuda`` although there is no GPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        asked = _is_gpu(kwargs.get("device")) or (func is _T.to and _target(args[1:], kwargs) == "cuda")
        if not asked:
            return func(*args, **kwargs)
        if func is _T.to and isinstance(args[0], OnGpu):
            return func(*args, **kwargs)
        if func is _T.to:
            made = args[0].clone().to(*_without_devices(args[1:]), **_without_devices(kwargs))
        else:
            args, kwargs = _on_cpu(args, kwargs)
            made = func(*args, **kwargs)
        return made.as_subclass(OnGpu)


class PretendedGpu(FakeDevice):
    """The fake device with slots on the pretended GPU."""

    torch_device = GPU

    def allocate(self, nbytes: int) -> torch.Tensor:
        return super().allocate(nbytes).as_subclass(OnGpu)

    def upload(self, source: torch.Tensor, slot: torch.Tensor, after: Any = None) -> Any:
        assert isinstance(slot, OnGpu)
        return super().upload(source, plain(slot), after)


def to_gpu(model: torch.nn.Module) -> None:
    """Move a loaded model; parameters on ``meta`` stay there."""
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for name, value in held.items():
                if value is not None and value.device.type == "cpu":
                    moved = value.detach().as_subclass(OnGpu)
                    is_parameter = held is module._parameters
                    held[name] = torch.nn.Parameter(moved, requires_grad=False) if is_parameter else moved
