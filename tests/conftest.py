"""What all tests share."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


def run_alone(program: str) -> str:
    """What a program in a Python of its own prints: much of what training sets up is for a whole process."""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()


@pytest.fixture
def repository() -> Path:
    """The checkout under test."""
    return REPOSITORY


@pytest.fixture(autouse=True)
def _repository_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Configurations are found from wherever a test runs."""
    monkeypatch.setenv("OCTAVO_ROOT", str(REPOSITORY))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what takes 20 GB, unless its marker is named."""
    if "gpu_image" not in config.option.markexpr:
        chosen = [item for item in items if item.get_closest_marker("gpu_image") is None]
        config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
        items[:] = chosen
