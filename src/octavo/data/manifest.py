"""`manifest.json` of a prepared data set: what it was made of, and the hashes of what was made.

A data set that no longer matches its manifest is an error, not a surprise.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from octavo.errors import OctavoError
from octavo.files import sha256
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
    splits: dict[Split, dict[str, Counts]]
    """Split -> domain -> how much."""
    vocabulary_size: int
    end_of_document: int
    token_type: Literal["uint16", "int32"]
    files: dict[str, FileRecord]


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a prepared data set; nothing else is read."""
    return read_record(folder / "manifest.json", Manifest, made_by="octavo data <experiment>")


def check_files(folder: Path, manifest: Manifest) -> None:
    """Compare every file of the data set with the manifest. Raises OctavoError for the first that differs."""
    for name, record in manifest.files.items():
        path = folder / name
        if not path.exists():
            found = "missing"
        elif path.stat().st_size != record.bytes:
            found = f"{path.stat().st_size:,} bytes instead of {record.bytes:,}"
        elif (digest := sha256(path)) != record.sha256:
            found = f"other bytes: SHA-256 {digest}"
        else:
            continue
        raise OctavoError(
            f"the data set does not match its manifest: {name} is {found}",
            where=path,
            expected=f"SHA-256 {record.sha256}",
            fix=f"remove {folder} and make it again (octavo data <experiment>), and the runs trained on it too",
        )
