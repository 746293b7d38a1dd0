"""A checkout in which `octavo accept` is started on the stand-in for a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.tiny import LIMIT, REPOSITORY, copy_configs, environment


@dataclass(frozen=True)
class Accepted:
    """What an acceptance left, and how it ended."""

    root: Path
    status: int
    printed: str
    errors: str


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clusters, models and published figures."""
    root = tmp_path_factory.mktemp("accept")
    copy_configs(root, ("clusters", "models", "published"))
    (root / "configs" / "experiments").mkdir()
    return root


@pytest.fixture(scope="session")
def accepted(checkout: Path, transformer_engine: Path) -> Accepted:
    """Accepted as an H100 node of two GPUs, in one recipe."""
    stand_in = REPOSITORY / "tests" / "transformer_engine_cpu" / "site"
    variables = {
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY / "tests"), str(stand_in)]),
        "TRANSFORMER_ENGINE_PYTHON": str(transformer_engine),
        "TRANSFORMER_ENGINE_CPU": "9.0",
    }
    command = [sys.executable, "-W", "ignore", "-m", "octavo", "accept", "h100-node", "--gpus", "2"]
    done = subprocess.run(
        [*command, "--recipe", "fp8_delayed", "--minutes", "600"], cwd=checkout,
        env={**environment(checkout), **variables}, capture_output=True, text=True, check=False, timeout=LIMIT,
    )  # fmt: skip
    return Accepted(checkout, done.returncode, done.stdout, done.stderr)
