"""An experiment file may name any package: what it fetches is opened, and never built, installed or run."""

from __future__ import annotations

import hashlib
import io
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from octavo.data.packages import fetch, read_package
from octavo.errors import OctavoError
from octavo.experiment.config import PackageSource


def source(content: bytes, **changes: Any) -> PackageSource:
    keys: dict[str, Any] = {
        "package": "some-Text", "version": "1.0", "archive": "sdist", "sha256": hashlib.sha256(content).hexdigest(),
        "files": ["*.txt"], "domain": "text", "license": "MIT", **changes,
    }  # fmt: skip
    return PackageSource(**keys)


def sdist(files: dict[str, str]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(f"some_text-1.0/{name}")
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
    return packed.getvalue()


def wheel(files: dict[str, str]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return packed.getvalue()


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An index (PEP 503) on this disk, which is all that pip is told of; the folder of the package `some-text`."""
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    for variable in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PIP_INDEX_URL", f"file://{tmp_path}/simple")
    monkeypatch.setenv("OCTAVO_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "simple" / "some-text"
    folder.mkdir(parents=True)
    return folder


def publish(index: Path, files: dict[str, bytes], *, fragments: bool = True) -> None:
    links = ""
    for name, content in files.items():
        (index / name).write_bytes(content)
        fragment = f"#sha256={hashlib.sha256(content).hexdigest()}" if fragments else ""
        links += f'<a href="{name}{fragment}">{name}</a>\n'
    (index / "index.html").write_text(f"<!DOCTYPE html><html><body>{links}</body></html>")


@pytest.mark.parametrize("fragments", [True, False])
def test_a_source_distribution_is_opened_and_not_built(index: Path, tmp_path: Path, fragments: bool) -> None:
    mark = tmp_path / "it-ran"
    code = f"open({str(mark)!r}, 'w')"
    content = sdist({
        "setup.py": code,
        "backend.py": code,
        "pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]',
        "a.txt": "words",
    })  # fmt: skip
    others = {"some_text-0.9.tar.gz": b"older", "some_text-1.0-py3-none-any.whl": b"a wheel", "some-text-1.0.zip": b"x"}
    publish(index, {**others, "some-text-1.0.tar.gz": content}, fragments=fragments)
    assert list(read_package(source(content), fetch(source(content)))) == [("a.txt", "words")]
    assert not mark.exists()


def test_a_wheel_with_another_hash_is_not_kept(index: Path, tmp_path: Path) -> None:
    wanted = source(wheel({"a.txt": "words"}), archive="wheel")
    publish(index, {"some_text-1.0-py3-none-any.whl": wheel({"a.txt": "other words"})}, fragments=False)
    with pytest.raises(OctavoError, match=r"some_text-1\.0-py3-none-any\.whl has the SHA-256") as refused:
        fetch(wanted)
    assert refused.value.expected == f"an archive with SHA-256 {wanted.sha256}"
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    "changes",
    [
        {"package": "x\n--find-links /tmp"},
        {"package": "x --index-url=http://elsewhere"},
        {"package": "../x"},
        {"package": "x @ file:///tmp/x"},
        {"version": "1\n--find-links ."},
        {"version": "1 --hash=sha256:0"},
        {"version": "*"},
        {"version": "1 ; python_version"},
    ],
)
def test_names_and_versions_are_names_and_versions(changes: dict[str, str]) -> None:
    """By the patterns of PyPA's specifications (PEP 503, PEP 440)."""
    with pytest.raises(ValidationError):
        source(b"", **changes)


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04" + bytes(100), b"\x1f\x8b" + bytes(50)])
@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_what_is_no_archive_is_said(tmp_path: Path, content: bytes, kind: str) -> None:
    path = tmp_path / "some_text-1.0.whl"
    path.write_bytes(content)
    with pytest.raises(OctavoError, match="cannot be read"):
        list(read_package(source(content, archive=kind), path))


@pytest.mark.parametrize(
    "query", ["attach database '{other}' as x", "select name, load_extension('x') from t", "pragma x"]
)
def test_a_query_reads_its_own_database_alone(tmp_path: Path, query: str) -> None:
    path, other = tmp_path / "some_text-1.0.whl", tmp_path / "other.sqlite"
    path.write_bytes(wheel({"a.sqlite": ""}))
    wanted = source(
        path.read_bytes(), archive="wheel", files=["*.sqlite"], reader="sqlite", query=query.format(other=other)
    )
    with pytest.raises(OctavoError, match="the query of source some-Text failed"):
        list(read_package(wanted, path))
    assert not other.exists()
