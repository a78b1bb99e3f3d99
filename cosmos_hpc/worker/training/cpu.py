"""Lets Megatron-Core and NeMo, which assume CUDA, train on a machine without it.

Megatron allocates on ``device="cuda"``, asks ``torch.cuda`` for streams and generator states and
compares tensor type names with ``torch.cuda.FloatTensor``. :func:`adapt` answers those calls on the
CPU. It changes no arithmetic: kernels, collectives (gloo) and optimizer are the real ones.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from megatron.core.tensor_parallel import random as megatron_random
from torch.overrides import TorchFunctionMode


class _NoStream:
    """Stands for a CUDA stream, event or device guard: CPU work is already in order."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __enter__(self) -> _NoStream:
        return self

    def __exit__(self, *_: Any) -> None: ...

    def _nothing(self, *_: Any, **__: Any) -> None: ...

    wait_stream = wait_event = record = wait = synchronize = record_event = _nothing

    def query(self) -> bool:
        return True

    def elapsed_time(self, _: Any) -> float:
        return 0.0


def _is_cuda(device: Any) -> bool:
    if isinstance(device, torch.device):
        return device.type == "cuda"
    if isinstance(device, str):
        return device.startswith("cuda")
    return isinstance(device, int) and not isinstance(device, bool)


class _OnCpu(TorchFunctionMode):
    """Turns requests for a CUDA device into the CPU, in every torch function."""

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.cuda:
            return args[0]
        if func is torch.Tensor.pin_memory:
            return args[0]
        if func is torch.Tensor.type and len(args) == 1 and not kwargs:
            # Megatron's optimizer and gradient clipping compare this name.
            return func(*args).replace("torch.", "torch.cuda.")
        if func is torch.Tensor.to:
            args = tuple("cpu" if i and _is_cuda(a) else a for i, a in enumerate(args))
        if _is_cuda(kwargs.get("device")):
            kwargs["device"] = "cpu"
        kwargs.pop("pin_memory", None)
        return func(*args, **kwargs)


def _nothing(*_: Any, **__: Any) -> None: ...


def _replace(stack: contextlib.ExitStack, place: Any, name: str, value: Any) -> None:
    stack.callback(setattr, place, name, getattr(place, name))
    setattr(place, name, value)


def adapt() -> contextlib.ExitStack:
    """Patch ``torch.cuda`` and enter the function mode, until the returned stack is closed.

    Raises:
        RuntimeError: CUDA is available, so nothing may be redirected.
    """
    if torch.cuda.is_available():
        raise RuntimeError("CUDA is available: the CPU adaptation would hide the GPU")
    stack = contextlib.ExitStack()
    harmless: dict[str, Any] = {
        "Stream": _NoStream,
        "Event": _NoStream,
        "stream": _NoStream,
        "device": _NoStream,
        "current_stream": _NoStream,
        "default_stream": _NoStream,
        "synchronize": _nothing,
        "set_device": _nothing,
        "empty_cache": _nothing,
        "reset_peak_memory_stats": _nothing,
        "manual_seed": _nothing,
        "set_rng_state": _nothing,
        "_lazy_init": _nothing,
        "_lazy_call": _nothing,
        "current_device": lambda: 0,
        "is_initialized": lambda: True,
        "memory_allocated": lambda *_, **__: 0,
        "max_memory_allocated": lambda *_, **__: 0,
        "memory_reserved": lambda *_, **__: 0,
        "get_rng_state": lambda *_, **__: torch.get_rng_state(),
    }
    for name, value in harmless.items():
        _replace(stack, torch.cuda, name, value)
    # Recomputation saves and restores the generator states of CUDA, of which there is none.
    _replace(stack, megatron_random, "_get_cuda_rng_state", lambda *_, **__: torch.get_rng_state())
    _replace(stack, megatron_random, "_set_cuda_rng_state", _nothing)
    stack.enter_context(_OnCpu())
    return stack
