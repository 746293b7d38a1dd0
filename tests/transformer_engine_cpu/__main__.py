"""`octavo` with the stand-in, on a GPU of the compute capability that TRANSFORMER_ENGINE_CPU names."""

from __future__ import annotations

import os

import transformer_engine_cpu

if __name__ == "__main__":
    transformer_engine_cpu.install(os.environ["TRANSFORMER_ENGINE_CPU"])

    from octavo.cli import main

    main()
