"""`make setup`: for CPUs or GPUs. `make clean` and `make distclean`: results are paid for, and are removed only on
confirmation."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.tiny import LIMIT, REPOSITORY

RESULT = "results/laptop/runs/dense-bf16/seed-1/result.json"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name in ("Makefile", "requirements.lock"):
        shutil.copy(REPOSITORY / name, tmp_path)
    for name in (RESULT, "results/reference/laptop/reference.json", ".venv/pyvenv.cfg", ".pytest_cache/x"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for name in ("src", "tests", "benchmarks"):
        (tmp_path / name / "__pycache__").mkdir(parents=True)
    return tmp_path


def make(checkout: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", *arguments], cwd=checkout, capture_output=True, text=True, check=False, timeout=LIMIT
    )


@pytest.mark.parametrize(
    ("made", "arguments", "lock", "anew"),
    [
        (None, (), "requirements.lock", False),
        (".complete", ("GPU=1",), "requirements-gpu.lock", True),
        (".complete-gpu", (), None, False),  # GPU=1 is kept: nothing to do
        (".complete-gpu", ("GPU=",), "requirements.lock", True),
    ],
)
def test_a_set_up_for_gpus_is_made_anew_and_stays(
    checkout: Path, made: str | None, arguments: tuple[str, ...], lock: str | None, anew: bool
) -> None:
    for name in ("requirements-cuda.lock", "requirements-gpu.lock", "pyproject.toml", "setup.py"):
        (checkout / name).touch()
    if made:
        (checkout / ".venv" / made).touch()
    planned = make(checkout, "--dry-run", "setup", *arguments)
    assert planned.returncode == 0, planned.stderr
    assert (f"from {lock} ..." in planned.stdout) == (lock is not None)
    assert ("venv --clear" in planned.stdout) == anew
    assert ("gpu-packages.sh .venv requirements-gpu.lock" in planned.stdout) == (lock == "requirements-gpu.lock")


def test_clean_removes_caches_and_neither_results_nor_the_set_up(checkout: Path) -> None:
    assert make(checkout, "clean").returncode == 0
    assert (checkout / RESULT).exists()
    assert (checkout / ".venv/pyvenv.cfg").exists()
    assert not (checkout / ".pytest_cache").exists()
    assert not list(checkout.rglob("__pycache__"))


def test_distclean_says_what_it_would_remove_and_removes_it_only_when_confirmed(checkout: Path) -> None:
    asked = make(checkout, "distclean")
    assert asked.returncode != 0
    assert "results/laptop" in asked.stdout
    assert "results/reference" not in asked.stdout
    assert "make distclean CONFIRM=1" in asked.stdout
    assert (checkout / RESULT).exists()
    assert (checkout / ".venv/pyvenv.cfg").exists()
    done = make(checkout, "distclean", "CONFIRM=1")
    assert done.returncode == 0, done.stderr
    assert "results/laptop" in done.stdout
    assert sorted(path.name for path in (checkout / "results").iterdir()) == ["reference"]
    assert not (checkout / ".venv").exists()
