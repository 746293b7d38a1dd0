"""Import Transformer Engine's Python package on a machine without CUDA, far enough for models to be constructed.

torch.cuda describes a GPU that is not there, and everything "on CUDA" is on the meta device. Where Transformer Engine
is not compiled (outside the GPU image), its extension (`tests/transformer_engine_cpu`) and the packages that only run
kernels are stand-ins. What is real: Transformer Engine's modules and recipes, and all of Megatron-Core. Nothing can be
computed. It changes the whole process: for processes of their own.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import torch.cuda
from torch.overrides import TorchFunctionMode

_STAND_INS = ("triton", "onnx", "onnxscript")


class _StandIns(MetaPathFinder, Loader):
    """Imports of these packages, and of anything in them, give mocks."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        known = fullname.partition(".")[0] in _STAND_INS
        return ModuleSpec(fullname, self, is_package=True) if known else None

    def create_module(self, spec: ModuleSpec) -> Any:
        return MagicMock(name=spec.name, __version__="0", __path__=[])

    def exec_module(self, module: ModuleType) -> None: ...


class _Stream:
    """A CUDA stream or event on which nothing happens."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


class _CudaIsMeta(TorchFunctionMode):
    """Tensors asked for on CUDA are made on the meta device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if str(kwargs.get("device") or "").startswith("cuda"):
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def pretend(compute_capability: tuple[int, int] = (10, 0), *, compiled: bool = False) -> None:
    """Make `torch.cuda` describe a GPU of a compute capability, and Transformer Engine importable.

    `compiled`: with Transformer Engine's own libraries, which must be there, and no stand-in for them.
    """
    for name in ("torch._dynamo", "torch._inductor.output_code", "torch.utils.flop_counter"):
        import_module(name)  # what of torch looks for triton does so before there is a stand-in
    if compiled:
        import_module("transformer_engine.pytorch")  # as on a login node: before anything looks like a GPU
    else:
        os.environ["NVTE_PROJECT_BUILDING"] = "1"  # Transformer Engine then loads no shared library
        sys.meta_path.insert(0, _StandIns())
        sys.path.append(str(Path(__file__).parents[1]))
        sys.modules["transformer_engine_torch"] = import_module("transformer_engine_cpu.extension")
    properties = SimpleNamespace(
        major=compute_capability[0],
        minor=compute_capability[1],
        name="a GPU that is not there",
        multi_processor_count=132,
        total_memory=80 << 30,
    )
    cpu_state = torch.get_rng_state()
    for name, value in {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: "meta",
        "get_device_properties": lambda *_: properties,
        "get_device_capability": lambda *_: compute_capability,
        "get_device_name": lambda *_: properties.name,
        "get_rng_state": lambda *_, **__: cpu_state,
        "set_rng_state": lambda *_, **__: None,
        "manual_seed": lambda *_: None,
        "current_stream": _Stream,
        "default_stream": _Stream,
        "Stream": _Stream,
        "Event": _Stream,
        "synchronize": lambda *_: None,
        "set_device": lambda *_: None,
        "is_initialized": lambda: True,
        "_lazy_init": lambda: None,
        "_lazy_call": lambda *_, **__: None,
    }.items():
        setattr(torch.cuda, name, value)
    # Megatron-Core's random states call the module that torch.cuda takes these from
    for name in ("get_rng_state", "set_rng_state"):
        setattr(torch.cuda.random, name, getattr(torch.cuda, name))
    torch.version.cuda = "13.0"
    _CudaIsMeta().__enter__()
    if compiled:
        return
    setattr(import_module("transformer_engine.common"), "load_framework_extension", lambda *_: None)  # noqa: B010
    extensions: Any = import_module("transformer_engine.pytorch").cpp_extensions
    extensions.__getattr__ = sys.modules["transformer_engine_torch"].__getattr__  # which `import *` leaves out
