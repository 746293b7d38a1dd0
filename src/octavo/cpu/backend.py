"""Megatron-Core on a machine without CUDA: the one module that knows what it must be told otherwise.

Megatron-Core names CUDA outright in some hundred places: buffers are made with `device="cuda"`, the optimizer looks for
`torch.cuda.BFloat16Tensor`, random states and streams are CUDA's. On a CPU all of these have an obvious meaning (the
CPU, its tensors, its generator, no streams at all), and `install` gives it to them. The mathematics stays the
library's own. With a CUDA device present `install` does nothing, and nothing else in Octavo asks.

Call `install()` before any other import of `megatron`: some of its modules bind names when they are imported.
"""

from __future__ import annotations

import functools
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any

import torch

_FACTORIES = ("tensor", "zeros", "ones", "empty", "full", "arange", "empty_like", "zeros_like", "ones_like")


@functools.cache
def install() -> None:
    """Make `megatron.core` importable and runnable without CUDA; once, and only where there is no CUDA device."""
    if torch.cuda.is_available():
        return
    _replace_cuda()
    _replace_tensors()
    _leave_kernels_out()
    with _plain_functions(), _without("torch.utils.tensorboard"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "Apex is not installed" and its like, which say nothing on a CPU
        import_module("megatron.core")
    _replace_in_megatron()
    _replace_fused()
    _leave_compiler_out()


class _Stream:
    """A CUDA stream or event where work is done in order anyway: every wait is over at once."""

    def __init__(self, *_: Any, **__: Any) -> None:
        """Takes what torch.cuda.Stream and torch.cuda.Event take."""

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *_: Any) -> None:
        """Nothing to restore."""

    def record_event(self, *_: Any) -> _Stream:
        return self

    def _nothing(self, *_: Any) -> None:
        """Done already."""

    wait_stream = wait_event = synchronize = record = wait = _nothing


def _replace_cuda() -> None:
    """Devices, streams and random states of `torch.cuda`."""
    cpu, stream = torch.device("cpu"), _Stream()

    replacements: dict[str, Any] = {
        "current_device": lambda: cpu,
        "device_count": lambda: 1,
        "Stream": _Stream,
        "Event": _Stream,
        "current_stream": lambda *_: stream,
        "default_stream": lambda *_: stream,
        "stream": lambda of: of or stream,
        "manual_seed": torch.manual_seed,
        "get_rng_state": lambda *_, **__: torch.get_rng_state(),
        "set_rng_state": lambda state, *_, **__: torch.set_rng_state(state),
        **{name: _nothing() for name in ("set_device", "set_stream", "synchronize", "empty_cache")},
    }
    for name, value in replacements.items():
        setattr(torch.cuda, name, value)
    for name in ("range_push", "range_pop"):
        setattr(torch.cuda.nvtx, name, _nothing())


def _nothing() -> Callable[..., None]:
    """A function for what needs no doing here; one each, since torch._dynamo wants torch's functions to differ."""

    def nothing(*_: Any, **__: Any) -> None:
        pass

    return nothing


def _replace_tensors() -> None:
    """Tensors asked for on CUDA are made on the CPU, and call themselves what Megatron's optimizers look for."""
    for name in _FACTORIES:
        setattr(torch, name, _on_cpu(getattr(torch, name)))
    type_of: Callable[..., Any] = torch.Tensor.type

    def cuda_type(tensor: torch.Tensor, dtype: Any = None, *args: Any, **kwargs: Any) -> Any:
        if dtype is None:
            return type_of(tensor).replace("torch.", "torch.cuda.", 1)
        return type_of(tensor, dtype, *args, **kwargs)

    torch.Tensor.type = cuda_type  # type: ignore[method-assign]
    torch.Tensor.cuda = lambda tensor, *_, **__: tensor  # type: ignore[method-assign, assignment]
    torch.Tensor.record_stream = lambda *_: None  # type: ignore[method-assign, assignment]


def _on_cpu(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @functools.wraps(make)
    def make_on_cpu(*args: Any, device: Any = None, **kwargs: Any) -> torch.Tensor:
        if device is None:
            return make(*args, **kwargs)
        if torch.device(device).type == "cuda":
            device = "cpu"
        kwargs.pop("pin_memory", None)
        return make(*args, device=device, **kwargs)

    return make_on_cpu


@contextmanager
def _plain_functions() -> Iterator[None]:
    """Within it, `torch.compile` gives back the function: Megatron's `jit_fuser` binds it when it is imported.

    Compiling its dozen element-wise functions costs a C++ compiler and half a minute at the start of every run.
    """
    compiler = torch.compile
    torch.compile = lambda function: function  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.compile = compiler


@contextmanager
def _without(module: str) -> Iterator[None]:
    """Within it, a module that nobody uses cannot be imported: one that takes a fifth of a second at every start."""
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None  # type: ignore[assignment]  # so `import` says that it is not there
    try:
        yield
    finally:
        del sys.modules[module]


def _leave_kernels_out() -> None:
    """Kernels that take CUDA's tensors alone: Transformer Engine's, which Megatron-Core prefers wherever it can import
    it, and those that 0.19 imports triton for without looking whether it is there."""
    sys.modules.setdefault("transformer_engine", None)  # type: ignore[arg-type]  # so `import` says that it is not there
    absent: Any = ModuleType("megatron.core.transformer.moe.ops.paged_stash")
    absent.GLOBAL_BLOCK_SIZE, absent.paged_stash_copy_kernel, absent.paged_stash_pop_kernel = 1024, None, None
    sys.modules[absent.__name__] = absent


def _replace_in_megatron() -> None:
    """Names that it leaves undefined without Transformer Engine, and its CUDA random states."""
    from megatron.core.tensor_parallel import random
    from megatron.core.transformer import multi_latent_attention
    from megatron.core.transformer.moe import moe_utils, token_dispatcher

    def get_state(*_: Any, **__: Any) -> torch.Tensor:
        return torch.get_rng_state()

    def set_state(state: torch.Tensor, *_: Any, **__: Any) -> None:
        torch.set_rng_state(state)

    # it warns when the CPU's random state changes in place of CUDA's; here the two are one
    logging.getLogger(random.__name__).setLevel(logging.ERROR)
    random._get_cuda_rng_state = get_state
    random._set_cuda_rng_state = set_state
    if not moe_utils.HAVE_TE:
        moe_utils.te_general_gemm = None
    token_dispatcher.maybe_move_tensor_to_cpu = moe_utils.maybe_move_tensor_to_cpu = _to_host
    # it believes that Transformer Engine is there whenever the module with its names can be imported, and then
    # asks isinstance(..., None); and it accepts ColumnParallelLinear itself alone, none of its subclasses.
    multi_latent_attention.HAVE_TE = moe_utils.HAVE_TE
    multi_latent_attention.Linear = _AnyColumnParallelLinear()  # type: ignore[assignment]


def _replace_fused() -> None:
    """What Megatron compiles or fuses on GPUs, into one pass in FP32, rounded once; `cpu_kernels` does so on a CPU."""
    from megatron.core.fusions import fused_bias_swiglu
    from megatron.core.models.common.embeddings import rope_utils
    from megatron.core.transformer.moe import moe_utils, router

    from octavo.cpu import kernels as cpu_kernels
    from octavo.cpu.layers import rotary_embedding, router_gating_linear, row_softmax

    def swiglu_gradient(gradient: torch.Tensor, both: torch.Tensor) -> torch.Tensor:
        return cpu_kernels.swiglu_gradient(gradient, both)[0]

    fused_bias_swiglu.swiglu = cpu_kernels.swiglu
    fused_bias_swiglu.swiglu_back = swiglu_gradient
    rope_utils._apply_rotary_pos_emb_bshd = rotary_embedding(rope_utils._apply_rotary_pos_emb_bshd)
    torch.softmax = row_softmax(torch.softmax)  # type: ignore[assignment]
    if not moe_utils.HAVE_TE:
        router.router_gating_linear = router_gating_linear(moe_utils.router_gating_linear)


def _leave_compiler_out() -> None:
    """The optimizer's methods as they are: torch would import its compiler, for half a second, to keep it off them."""
    for method in vars(torch.optim.Optimizer).values():
        if (plain := getattr(method, "__wrapped__", None)) is not None:
            plain.__dynamo_disable = plain
    torch.optim.Adam.step = torch.no_grad()(torch.optim.Adam.step.__wrapped__)  # type: ignore[attr-defined, method-assign]


def _to_host(tensor: Any, as_numpy: bool = False, record_stream: bool = False) -> Any:  # noqa: ARG001
    """Tensors are on the host already; split sizes become the lists that gloo's all_to_all takes."""
    return tensor.tolist() if as_numpy and torch.is_tensor(tensor) else tensor


class _AnyColumnParallelLinear:
    """Equal to every subclass of Megatron's ColumnParallelLinear."""

    def __eq__(self, other: object) -> bool:
        from megatron.core.tensor_parallel.layers import ColumnParallelLinear

        return isinstance(other, type) and issubclass(other, ColumnParallelLinear)

    __hash__ = object.__hash__
