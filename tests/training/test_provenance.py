"""The provenance names the lock that the packages really came from, or none."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from octavo.training.provenance import lock_sha256

LOCK = """numpy==2.4.6 ; python_full_version < '3.12' \\
    --hash=sha256:00
numpy==2.5.5 ; python_full_version >= '3.12' \\
    --hash=sha256:01
torch==2.13.0 \\
    --hash=sha256:02
"""
INSTALLED = {"numpy": "2.4.6", "torch": "2.13.0+cpu", "octavo": "0.1.0"}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with a lock and the record of a GPU image."""
    monkeypatch.setenv("OCTAVO_ROOT", str(tmp_path))
    (tmp_path / "requirements.lock").write_text(LOCK)
    (tmp_path / "results/images").mkdir(parents=True)
    record = {"digest": "sha256:ab", "lock_sha256": "the GPU lock's"}
    (tmp_path / "results/images/gpu.json").write_text(json.dumps(record))
    return tmp_path


def test_in_an_image_it_is_the_images(root: Path) -> None:
    assert lock_sha256("sha256:ab", INSTALLED) == "the GPU lock's"


def test_of_an_image_without_a_record_it_is_not_known(root: Path) -> None:
    assert lock_sha256("sha256:cd", INSTALLED) is None


def test_elsewhere_it_is_the_lock_that_names_what_is_installed(root: Path) -> None:
    assert lock_sha256(None, INSTALLED) == hashlib.sha256(LOCK.encode()).hexdigest()


@pytest.mark.parametrize("other", [{"numpy": "2.3.0"}, {"transformer-engine": "2.11.0"}])
def test_packages_of_other_versions_or_that_the_lock_lacks_are_not_the_locks(root: Path, other: dict[str, str]) -> None:
    assert lock_sha256(None, {**INSTALLED, **other}) is None


def test_what_was_set_up_for_gpus_is_of_the_gpu_lock(root: Path) -> None:
    lock = "numpy==2.4.6\ntorch==2.14.1\ntransformer-engine==2.11.0\n"
    (root / "requirements-gpu.lock").write_text(lock)
    installed = {"numpy": "2.4.6", "torch": "2.14.1", "transformer-engine": "2.11.0"}
    assert lock_sha256(None, installed) == hashlib.sha256(lock.encode()).hexdigest()
