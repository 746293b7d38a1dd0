"""Transformer Engine's own Python on a CPU: a stand-in for the module that it compiles, in plain PyTorch.

Transformer Engine's modules, quantised tensors, recipes and autograd functions are Python over one compiled module,
`transformer_engine_torch`, and a few Triton kernels. With those two in plain PyTorch (`extension`, `permutation`), and
`torch.cuda` describing a GPU that computes on the CPU (`cuda`), a whole run trains as it does on a GPU: Octavo's GPU
branch, Megatron-Core's Transformer Engine layers, their optimizer and checkpoints. What is real: all of Octavo,
Megatron-Core and Transformer Engine's Python. What is not: the kernels, their speed, the order of their sums, NCCL.

`install` changes the whole process: `TRANSFORMER_ENGINE_CPU=9.0 python -m transformer_engine_cpu train ...` is `octavo
train ...` with it, on a GPU of that compute capability. With the folder `site` on PYTHONPATH a process has it, and all
processes that it starts.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

_NOT_USED = ("triton", "onnx", "onnxscript")
"""Packages that Transformer Engine imports, and whose contents nothing here calls."""


class _Mocks(MetaPathFinder, Loader):
    """Imports of these packages, and of anything in them, give mocks."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        known = fullname.partition(".")[0] in _NOT_USED
        return ModuleSpec(fullname, self, is_package=True) if known else None

    def create_module(self, spec: ModuleSpec) -> Any:
        return MagicMock(name=spec.name, __version__="0", __path__=[])

    def exec_module(self, module: ModuleType) -> None: ...


def install(compute_capability: str) -> None:
    """Make Transformer Engine importable and runnable on this CPU, as on a GPU of a compute capability ("10.0")."""
    for name in ("torch._dynamo", "torch._inductor.output_code", "torch.utils.flop_counter"):
        import_module(name)  # what of torch looks for triton does so before there is a mock
    os.environ["NVTE_PROJECT_BUILDING"] = "1"  # Transformer Engine then loads no shared library
    sys.meta_path.insert(0, _Mocks())

    from transformer_engine_cpu import cuda, extension, permutation

    major, minor = compute_capability.split(".")
    cuda.install((int(major), int(minor)))
    sys.modules["transformer_engine_torch"] = extension
    common: Any = import_module("transformer_engine.common")
    common.load_framework_extension = lambda *_: None
    engine: Any = import_module("transformer_engine.pytorch")
    engine.cpp_extensions.__getattr__ = extension.__getattr__  # which `import *` leaves out
    kernels = import_module("transformer_engine.pytorch.triton.permutation")
    for name, function in permutation.FUNCTIONS.items():
        setattr(kernels, name, function)
    cuda.keep_in_custom_operators()


def forget_layers() -> None:
    """Forget the scaling states of all layers: another model begins in this process."""
    quantization: Any = import_module("transformer_engine.pytorch.quantization")
    quantization.FP8GlobalStateManager.reset()
