"""`manifest.json` of a prepared data set: what it was made of, and the hashes of what was made.

A data set that no longer matches its manifest is an error, not a surprise.
"""

from __future__ import annotations

import fcntl
import os
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Literal

from pydantic import Field

from octavo.data.documents import file_name, source_files
from octavo.errors import OctavoError
from octavo.experiment.config import Data, FileSource, FileTokenizer, PackageSource, Source, Tokenizer
from octavo.experiment.run import data_identifier
from octavo.files import fingerprint, sha256
from octavo.layout import data_folder, repository
from octavo.records import SCHEMA_VERSION, Record, read_record

Split = Literal["train", "validation"]


class Counts(Record):
    """How much of a domain is in a split."""

    documents: int
    tokens: int
    """Ends of documents included."""
    bytes: int | None
    """Of UTF-8 text; null where the source is already tokenised."""


class SourceRecord(Record):
    """One source, as it was read."""

    name: str
    kind: str
    license: str | None
    sha256: dict[str, str]
    """File name -> SHA-256."""
    documents: int


class FileRecord(Record):
    """A file of the data set."""

    bytes: int
    sha256: str


class Manifest(Record):
    """`manifest.json`."""

    schema_version: int = SCHEMA_VERSION
    identifier: str
    """What the experiment asks for, as a hash: the folder's name."""
    sources: list[SourceRecord]
    tokenizer_sha256: str | None = Field(default=None, exclude_if=lambda value: value is None)
    """Of the tokenizer's file, where the experiment names one; not there otherwise."""
    splits: dict[Split, dict[str, Counts]]
    """Split -> domain -> how much."""
    vocabulary_size: int
    end_of_document: int
    token_type: Literal["uint16", "int32"]
    files: dict[str, FileRecord]


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a prepared data set; nothing else is read."""
    return read_record(folder / "manifest.json", Manifest, made_by="octavo data <experiment>")


def data_set_folder(data: Data, tokenizer: Tokenizer) -> Path:
    """Where an experiment's data set is."""
    return repository() / data_folder(data_identifier(data, tokenizer))


def current_manifest(data: Data, tokenizer: Tokenizer) -> str | None:
    """What an experiment's data set is known by, the manifest's SHA-256; None where none is prepared."""
    path = data_set_folder(data, tokenizer) / "manifest.json"
    return sha256(path) if path.exists() else None


def check_files(folder: Path, manifest: Manifest, *, hashes: bool = True) -> None:
    """Compare every file of the data set with the manifest, or the files' sizes alone.

    Raises OctavoError for the first that differs.
    """
    for name, record in manifest.files.items():
        path = folder / name
        if not path.exists():
            raise _other_file(path, "missing", record, folder)
        if (size := path.stat().st_size) != record.bytes:
            raise _other_file(path, f"{size:,} bytes instead of {record.bytes:,}", record, folder)
    if hashes:
        paths = [folder / name for name in manifest.files]
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:  # hashing holds no lock
            for path, record, digest in zip(paths, manifest.files.values(), pool.map(sha256, paths), strict=True):
                if digest != record.sha256:
                    raise _other_file(path, f"other bytes: SHA-256 {digest}", record, folder)


def check_files_once(folder: Path, manifest: Manifest) -> None:
    """`check_files`, whose hashes are made once on this machine.

    A record beside the data set seals what was hashed: the manifest, and each file's size, times and inode. While they
    are the same the files are trusted: no program can set a file's ctime. Of processes that begin together one hashes
    and the others wait. Where no record can be written, all hash.
    """
    record = folder / f".hashed-{socket.gethostname()}"
    check_files(folder, manifest, hashes=False)
    with suppress(OSError), record.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        seen = _seal(folder, manifest)  # before they are hashed
        file.seek(0)
        if file.read() != seen:
            check_files(folder, manifest)
            file.truncate(0)
            file.write(seen)
        return
    check_files(folder, manifest)


def _seal(folder: Path, manifest: Manifest) -> str:
    stats = [(folder / name).stat() for name in manifest.files]
    files = [(one.st_size, one.st_mtime_ns, one.st_ctime_ns, one.st_ino) for one in stats]
    return fingerprint([sha256(folder / "manifest.json"), files])


def _other_file(path: Path, found: str, record: FileRecord, folder: Path) -> OctavoError:
    return OctavoError(
        f"the data set does not match its manifest: {path.name} is {found}",
        where=path,
        expected=f"SHA-256 {record.sha256}",
        fix=f"remove {folder} and make it again (octavo data <experiment>), and the runs trained on it too",
    )


def check_sources(data: Data, tokenizer: Tokenizer, folder: Path) -> None:
    """Compare the text and the tokenizer's file with those that the data set in `folder` was made of.

    Raises OctavoError for the first that differs or is gone. Packages are not read: their hash is what is asked for.
    """
    manifest = read_manifest(folder)
    for source, record in zip(data.sources, manifest.sources, strict=True):
        if isinstance(source, PackageSource):
            continue
        there = {file_name(source, path): path for path in source_files(source)}
        for name in sorted(there.keys() | record.sha256.keys()):
            if name not in there or name not in record.sha256:
                found = "is new" if name in there else "is gone"
                raise _changed(f"{name} {found}", _base(source), folder)
            _compare(there[name], name, record.sha256[name], folder)
    if isinstance(tokenizer, FileTokenizer):
        path = repository() / tokenizer.path
        _compare(path, f"the tokenizer {path.name}", manifest.tokenizer_sha256 or "not recorded", folder)


def check_newer_sources(data: Data, tokenizer: Tokenizer, folder: Path) -> None:
    """`check_sources` where text or tokenizer was written after the data set in `folder` was made, if it is made.

    For those who ask often: it reads nothing where no time is newer, and so is no proof. Text that is gone is left out.
    """
    manifest = folder / "manifest.json"
    if manifest.exists() and _written_since(manifest.stat().st_mtime, data, tokenizer):
        check_sources(data, tokenizer, folder)


def _written_since(time: float, data: Data, tokenizer: Tokenizer) -> bool:
    local = [source for source in data.sources if not isinstance(source, PackageSource) and _base(source).exists()]
    files = [path for source in local for path in source_files(source)]
    if isinstance(tokenizer, FileTokenizer):
        files.append(repository() / tokenizer.path)
    return any(path.stat().st_mtime > time for path in files if path.exists())


def _base(source: Source) -> Path:
    """The file or folder that a local source is in."""
    assert not isinstance(source, PackageSource)
    return repository() / source.path if isinstance(source, FileSource) else Path(f"{repository() / source.prefix}.idx")


def _compare(path: Path, name: str, expected: str, folder: Path) -> None:
    if (found := sha256(path)) != expected:
        raise _changed(f"{name} has SHA-256 {found} instead of {expected}", path, folder)


def _changed(what: str, where: Path, folder: Path) -> OctavoError:
    return OctavoError(
        f"the text is not what the data set was made of: {what}",
        where=where,
        expected=f"the files that {folder / 'manifest.json'} names",
        fix=f"put the text back; or remove {folder} and make it again (octavo data <experiment>): what was trained on "
        "the earlier text is then trained again",
    )
