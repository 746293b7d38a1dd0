"""Python runs this first where PYTHONPATH names its folder, in every process and in those that it starts.

Torch then comes with the stand-in of the GPU that TRANSFORMER_ENGINE_CPU names, and with Transformer Engine's Python
from the folder TRANSFORMER_ENGINE_PYTHON, unless no GPU is to be seen by then (CUDA_VISIBLE_DEVICES).
"""

from __future__ import annotations

import os
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any


class _WithStandIn(MetaPathFinder, Loader):
    """Imports torch as ever, then makes it describe the GPU."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if fullname != "torch" or os.environ.get("CUDA_VISIBLE_DEVICES") == "":
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None:
            self._loader: Any = spec.loader
            spec.loader = self
        return spec

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        sys.path.insert(0, os.environ["TRANSFORMER_ENGINE_PYTHON"])
        import transformer_engine_cpu

        transformer_engine_cpu.install(os.environ["TRANSFORMER_ENGINE_CPU"])


if os.environ.get("TRANSFORMER_ENGINE_CPU"):
    sys.meta_path.insert(0, _WithStandIn())
