"""The compiled library is that of the C files beside it, or none."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from octavo.cpu import library
from octavo.cpu.library import find_library
from octavo.cpu.sources import FOLDER, digest
from octavo.experiment import doctor
from tests.conftest import REPOSITORY


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What setup.py needs of the package, with the library that installation compiled."""
    if library.COMPILED is None:
        pytest.skip("there was no C compiler at installation")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, tmp_path)
    shutil.copytree(FOLDER, tmp_path / "src/octavo/cpu", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def changed(checkout: Path) -> Path:
    folder = checkout / "src/octavo/cpu"
    with (folder / "rounding.c").open("a") as file:
        file.write("/* changed */\n")
    return folder


def test_the_library_of_the_files_beside_it_is_loaded(checkout: Path) -> None:
    found, refused = find_library(checkout / "src/octavo/cpu")
    assert found is not None
    assert refused == ""
    assert found.octavo_sources().decode() == digest()


def test_an_older_library_that_could_not_be_compiled_again_is_not_loaded(checkout: Path) -> None:
    """Set-up ends well without a compiler, and leaves the old library where it was."""
    folder = changed(checkout)
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace", "--force"]
    done = subprocess.run(
        command, cwd=checkout, env={**os.environ, "CC": "false"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert list(folder.glob("_library*.so"))
    found, refused = find_library(folder)
    assert found is None
    assert "compiled from other C files than those beside it" in refused


def test_the_doctor_says_that_a_library_is_stale(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, refused = find_library(changed(checkout))
    monkeypatch.setattr(library, "COMPILED", found)
    monkeypatch.setattr(library, "REFUSED", refused)
    (finding,) = [one for one in doctor.examine() if one.what == "compiled loops"]
    assert finding.state == "note"
    assert "compiled from other C files" in finding.found
    assert "last bits differ" in finding.found
    assert "make clean setup" in finding.fix


def test_a_change_of_flags_is_a_change_of_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    before = digest()
    monkeypatch.setattr("octavo.cpu.sources.FLAGS", ("-O3", "-ffast-math"))
    assert digest() != before


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs a C compiler")
@pytest.mark.parametrize(
    ("text", "why"),
    [("", "was compiled from other C files"), ("not a library", "cannot be loaded")],
    ids=["lacks the functions", "no library"],
)
def test_what_cannot_be_used_is_not_loaded(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "_library.so"
    if text:
        path.write_text(text)
    else:
        subprocess.run(["gcc", "-shared", "-o", str(path), "-x", "c", "/dev/null"], check=True)
    found, refused = find_library(tmp_path)
    assert found is None
    assert f"_library.so {why}" in refused


def test_without_a_library_it_says_so(tmp_path: Path) -> None:
    assert find_library(tmp_path) == (None, "the C files were not compiled")
