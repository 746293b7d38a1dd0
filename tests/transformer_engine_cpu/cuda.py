"""A GPU that is the CPU: `torch.cuda` describes one, and what is asked for "on CUDA" is made on the CPU.

Work is done in order and at once, so that streams and events have nothing to do; NCCL's collectives are gloo's. It
changes the whole process.
"""

from __future__ import annotations

import os
import time
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed
from torch._library import custom_ops
from torch.overrides import TorchFunctionMode

NAME = "a CPU in the place of a GPU"


class _Stream:
    """A stream or event on which everything is done already."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *_: Any) -> None: ...

    def record_event(self, *_: Any) -> _Stream:
        return self

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


class _Event(_Stream):
    """One that knows when it was recorded."""

    _at = 0.0

    def record(self, *_: Any) -> None:
        self._at = time.perf_counter()

    def elapsed_time(self, end: _Event) -> float:
        """Milliseconds."""
        return 1000 * (end._at - self._at)


def _is_cuda(device: Any) -> bool:
    if isinstance(device, int):
        return True
    return isinstance(device, str | torch.device) and str(device).startswith("cuda")


_ASKS_WHETHER_CUDA: Any = torch.Tensor.is_cuda.__get__  # type: ignore[attr-defined]


class _CudaIsCpu(TorchFunctionMode):
    """Tensors asked for on CUDA are made on the CPU, and say that they are on CUDA where Python asks them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.device:
            return func("cuda", args[0]) if args and isinstance(args[0], int) else func(*args, **kwargs)
        if kwargs.get("device") is not None and _is_cuda(kwargs["device"]):
            kwargs["device"] = "cpu"
        kwargs.pop("pin_memory", None)
        name = getattr(func, "__name__", "")
        if name == "to" and len(args) > 1 and not isinstance(args[1], bool) and _is_cuda(args[1]):
            args = (args[0], "cpu", *args[2:])
        elif name in ("cuda", "pin_memory"):
            return args[0]
        elif name == "record_stream":
            return None
        elif name == "type" and len(args) == 1 and not kwargs:  # Megatron-Core's optimizers look for these names
            return func(*args).replace("torch.", "torch.cuda.", 1)
        elif name == "__get__" and func == _ASKS_WHETHER_CUDA:
            return True
        return func(*args, **kwargs)


_MODE = _CudaIsCpu()


def install(compute_capability: tuple[int, int], *, name: str = NAME) -> None:
    """Make `torch.cuda` describe a GPU of a compute capability that computes on the CPU."""
    properties = SimpleNamespace(
        major=compute_capability[0],
        minor=compute_capability[1],
        name=name,
        multi_processor_count=132,
        total_memory=80 << 30,
        uuid="none",
    )
    stream, nothing = _Stream(), (lambda *_, **__: None)
    for key, value in {
        "is_available": lambda: True,
        "device_count": lambda: 8,
        "current_device": lambda: 0,
        "get_device_properties": lambda *_: properties,
        "get_device_capability": lambda *_: compute_capability,
        "get_device_name": lambda *_: name,
        "get_rng_state": lambda *_, **__: torch.get_rng_state(),
        "set_rng_state": lambda state, *_, **__: torch.set_rng_state(state),
        "manual_seed": torch.default_generator.manual_seed,
        "manual_seed_all": nothing,  # torch.manual_seed calls it, for the generator that it has just set
        "current_stream": lambda *_: stream,
        "default_stream": lambda *_: stream,
        "stream": lambda *_: stream,
        "Stream": _Stream,
        "Event": _Event,
        "is_initialized": lambda: True,
        "is_current_stream_capturing": lambda: False,
        "max_memory_allocated": lambda *_: 0,
        "memory_allocated": lambda *_: 0,
        "get_allocator_backend": lambda: "native",
        "_lazy_init": nothing,
        "_lazy_call": nothing,
        **dict.fromkeys(("set_stream", "set_device", "synchronize", "empty_cache", "reset_peak_memory_stats"), nothing),
    }.items():
        setattr(torch.cuda, key, value)
    # Megatron-Core's random states call the module that torch.cuda takes these from
    for key in ("get_rng_state", "set_rng_state"):
        setattr(torch.cuda.random, key, getattr(torch.cuda, key))
    for key in ("range_push", "range_pop"):
        setattr(torch.cuda.nvtx, key, nothing)
    torch.version.cuda = "13.0"
    torch.compile = lambda function=None, **_: function if function is not None else (lambda one: one)  # type: ignore[assignment]
    _gloo_for_nccl()
    os.environ["NVTE_TORCH_COMPILE"] = "0"
    _quantised_tensors_on_cpu()
    _keep_in_backward()
    _MODE.__enter__()


def _quantised_tensors_on_cpu() -> None:
    """Transformer Engine's quantised tensors are subclasses, which torch makes without asking a mode."""
    make: Any = torch.Tensor._make_wrapper_subclass

    def make_on_cpu(*args: Any, device: Any = None, **options: Any) -> Any:
        return make(*args, device="cpu" if _is_cuda(device) else device, **options)

    torch.Tensor._make_wrapper_subclass = staticmethod(make_on_cpu)  # type: ignore[method-assign]


def _keep_in_backward() -> None:
    """Torch leaves a mode while a function runs that it was asked about, as `backward`: enter it again there."""
    run: Any = torch.autograd.graph._engine_run_backward

    def run_in_mode(*args: Any, **options: Any) -> Any:
        with _MODE:
            return run(*args, **options)

    torch.autograd.graph._engine_run_backward = torch.autograd._engine_run_backward = run_in_mode  # type: ignore[attr-defined]


def keep_in_custom_operators() -> None:
    """Transformer Engine's own operators of torch: torch leaves the mode while their Python runs, too."""
    for name, operator in custom_ops.OPDEFS.items():
        if name.startswith("te_"):
            for device, function in operator._backend_fns.items():
                operator._backend_fns[device] = _in_mode(function)


def _in_mode(function: Any) -> Any:
    def run(*args: Any, **options: Any) -> Any:
        with _MODE:
            return function(*args, **options)

    return run


def _gloo_for_nccl() -> None:
    start: Any = torch.distributed.init_process_group

    def init_process_group(backend: str | None = None, **options: Any) -> None:
        start("gloo", **options)

    torch.distributed.init_process_group = init_process_group
