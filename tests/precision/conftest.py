"""Packages that Octavo is compared with, or that it drives on GPUs, kept out of its own environment."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def _installed(*requirements: str) -> Path:
    """A folder with these packages and nothing that they depend on, made once; skips the test if they cannot be had."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "octavo" / "tests"
    folder = cache / "-".join(part.replace("==", "-") for part in requirements)
    if not folder.exists():
        partial = folder.with_name(f"{folder.name}.{os.getpid()}")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(partial)]
        done = subprocess.run([*command, *requirements], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"{', '.join(requirements)} cannot be had: {done.stderr.strip().splitlines()[-1]}")
        try:
            partial.rename(folder)
        except OSError:  # another process was faster
            assert folder.exists()
    return folder


@pytest.fixture(scope="session")
def transformer_engine() -> Path:
    """Transformer Engine's Python package, of the version that the image has."""
    return _installed("transformer-engine==2.11.0", "einops==0.8.2")


@pytest.fixture(scope="session")
def torchao() -> Path:
    """torchao: emulated tensorwise float8, and OCP MX."""
    return _installed("torchao==0.18.0")
