"""What all tests share."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from octavo.cpu import library

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
    """Configurations are found from wherever a test runs. A verb that goes to a checkout leaves the next test here."""
    monkeypatch.setenv("OCTAVO_ROOT", str(REPOSITORY))
    monkeypatch.chdir(Path.cwd())


def pytest_configure() -> None:
    """Refuse to test torch's operators in place of C files that changed since they were compiled."""
    if library.COMPILED is None and shutil.which("gcc"):
        command = f"{sys.executable} -m pip install --no-deps --no-build-isolation --editable ."
        raise pytest.UsageError(f"{library.REFUSED}: run {command}")


LONGEST = (
    "training/test_every_layout",
    "workflow/test_pipeline",
    "training/test_ranks",
    "training/test_gpu_branch",
    "training/test_endings",
    "training/test_resharding",
    "acceptance/test_accept",
    "workflow/test_ladder_pipeline",
    "workflow/test_planned_lengths_pipeline",
    "training/test_planned_lengths",
    "training/test_parallel",
    "precision/test_transformer_engine",
    "verification/test_bundle",
    "verification/test_integrity",
    "verification/test_archive",
    "training/test_megatron_versions",
    "training/test_determinism",
    "training/test_changed_text",
    "workflow/test_seeds_until_decided",
    "fuzz/test_hostile_files",
    "forecast/test_fitting",
    "workflow/test_logger",
    "evidence/test_verdicts",
    "data/test_prepare",
    "report/test_html",
    "report/test_many_cells",
    "training/test_plain_reading",
    "precision/test_recipes_on_gpus",
)
"""Files that take longest. Begun first, none of them is what a single process still works at in the end."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The longest files first. Leave out what takes 20 GB, unless its marker is named."""
    place = {REPOSITORY / "tests" / f"{name}.py": number for number, name in enumerate(LONGEST)}
    assert all(path.exists() for path in place)
    items.sort(key=lambda item: place.get(item.path, len(place)))
    if "gpu_image" not in config.option.markexpr:
        chosen = [item for item in items if item.get_closest_marker("gpu_image") is None]
        config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
        items[:] = chosen


def _installed(*requirements: str, options: Sequence[str] = ()) -> Path:
    """A folder with these packages and nothing that they depend on, made once; skips the test if they cannot be had."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "octavo" / "tests"
    folder = cache / "-".join(part.replace("==", "-") for part in requirements)
    if not folder.exists():
        partial = folder.with_name(f"{folder.name}.{os.getpid()}")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(partial), *options]
        done = subprocess.run([*command, *requirements], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"{', '.join(requirements)} cannot be had: {done.stderr.strip().splitlines()[-1]}")
        try:
            partial.rename(folder)
        except OSError:  # another process was faster
            assert folder.exists()
    return folder


_FOR_OLDER = ("--python-version", "3.12", "--only-binary", ":all:", "--ignore-requires-python")
"""How Python 3.11 gets Megatron-Core 0.19.2, whose wheels are for 3.12 and newer: its Python is such as 3.11 reads."""


def _with_index(folder: Path) -> Path:
    """A folder with a Megatron-Core that is for another Python: what is compiled of it, the index of sequences, is the
    same in both versions, and that of the installed one is for this Python."""
    spec = importlib.util.find_spec("megatron.core")
    assert spec is not None
    assert spec.origin is not None
    datasets = folder / "megatron/core/datasets"
    ours = Path(spec.origin).parent / "datasets"
    assert (datasets / "helpers.py").read_bytes() == (ours / "helpers.py").read_bytes()
    for compiled in ours.glob("helpers_cpp*.so"):
        if not (datasets / compiled.name).exists():  # others may have it in use
            partial = datasets / f"{compiled.name}.{os.getpid()}"
            shutil.copy(compiled, partial)
            partial.rename(datasets / compiled.name)
    return folder


@pytest.fixture(scope="session")
def transformer_engine() -> Path:
    """Transformer Engine's Python package and Megatron-Core, of the versions that the GPU image has."""
    engine = ("transformer-engine==2.20.2", "einops==0.8.2")
    if sys.version_info >= (3, 12):  # has that Megatron-Core
        return _installed(*engine)
    return _with_index(_installed(*engine, "megatron-core==0.19.2", options=_FOR_OLDER))


@pytest.fixture(scope="session")
def other_megatron() -> Path:
    """The version of Megatron-Core that the lock names for other Pythons than this one."""
    newer = sys.version_info < (3, 12)
    version = "0.19.2" if newer else "0.16.1"
    return _with_index(_installed(f"megatron-core=={version}", options=_FOR_OLDER if newer else ()))


@pytest.fixture(scope="session")
def torchao() -> Path:
    """torchao: emulated tensorwise float8, and OCP MX."""
    return _installed("torchao==0.18.0")


@pytest.fixture(params=["compiled", "torch"])
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to compute on a CPU, in turn: the compiled loops and torch's operators."""
    from octavo.cpu import library

    if request.param == "torch":
        monkeypatch.setattr(library, "COMPILED", None)
    elif library.COMPILED is None:
        pytest.skip("there was no C compiler at installation")
    return request.param
