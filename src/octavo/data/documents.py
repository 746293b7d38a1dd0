"""Sources -> documents: a name, a domain, and text in pieces, so that no document need fit into memory.

A document is a file (.txt), a line (.jsonl), a row (.parquet), a member of a package's archive, or a document of an
already tokenised data set. Files may be compressed (.gz, .zst). Folders are read in the order of their paths.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import BinaryIO

import numpy as np
import zstandard

from octavo.data.indexed import read_documents
from octavo.data.packages import fetch, read_package
from octavo.errors import OctavoError
from octavo.experiment.config import Data, FileSource, IndexedSource, PackageSource, Source
from octavo.layout import repository

PIECE_CHARACTERS = 1 << 18
"""Text is read and tokenised in pieces of about this length, cut at line ends."""
LINE_CHARACTERS = 1 << 26
"""The longest line of JSON: a document with its keys. A few kB, compressed, can hold a line that fills memory."""
SUFFIXES = (".txt", ".jsonl", ".parquet")
COMPRESSED = (".gz", ".zst")


@dataclass(frozen=True)
class Document:
    """One document, read once."""

    source: int
    """Position of its source in the experiment file."""
    name: str
    domain: str
    pieces: Iterator[str | np.ndarray]
    """Its text in pieces; its tokens where the source is already tokenised."""


def source_name(source: Source) -> str:
    """How a source is called in manifests and messages."""
    if isinstance(source, PackageSource):
        return f"{source.package} {source.version}"
    return source.path if isinstance(source, FileSource) else source.prefix


def source_files(source: Source) -> list[Path]:
    """The files on disk that a source is read from. Raises OctavoError where there are none."""
    if isinstance(source, PackageSource):
        return [fetch(source)]
    if isinstance(source, IndexedSource):
        pair = [Path(f"{repository() / source.prefix}{suffix}") for suffix in (".idx", ".bin")]
        for path in pair:
            if not path.is_file():
                raise OctavoError(
                    "a tokenised source is missing", where=path, fix="put it there, or correct `prefix` (no suffix)"
                )
        return pair
    path = repository() / source.path
    if not path.exists():
        raise OctavoError("a source of text is missing", where=path, fix="put the text there, or correct `path`")
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if _format(file) and file.is_file())
    if not files or _format(files[0]) is None:
        raise OctavoError(
            "a source holds no text", where=path, expected=f"{', '.join(SUFFIXES)} files, or .gz or .zst of them"
        )
    return files


def file_name(source: Source, path: Path) -> str:
    """How manifests and documents call a file of a source: by its place in the source's folder, wherever that is."""
    root = repository() / source.path if isinstance(source, FileSource) else path
    return path.name if path == root else path.relative_to(root).as_posix()


def read_source(number: int, source: Source) -> Iterator[Document]:
    """The documents of a source, in an order that depends on nothing but its contents."""
    if isinstance(source, PackageSource):
        for name, text in read_package(source, fetch(source)):
            yield Document(number, name, source.domain, _cut(io.StringIO(text)))
    elif isinstance(source, IndexedSource):
        for index, tokens in enumerate(read_documents(repository() / source.prefix)):
            yield Document(number, f"{Path(source.prefix).name}:{index}", source.domain, iter([tokens]))
    else:
        for path in source_files(source):
            yield from _read_file(number, source, path)


def is_held_out(document: Document, data: Data) -> bool:
    """Whether a document is for validation: named by its source, or by the hash of its name."""
    source = data.sources[document.source]
    patterns = None if isinstance(source, IndexedSource) else source.held_out
    if patterns is not None:
        return any(fnmatch(document.name, pattern) for pattern in patterns)
    digest = hashlib.sha256(f"{data.split_seed}\0{source_name(source)}\0{document.name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < data.validation_fraction * 2**64


def _read_file(number: int, source: FileSource, path: Path) -> Iterator[Document]:
    name, kind = file_name(source, path), _format(path)
    if kind == ".txt":
        with _open_text(path) as file:
            yield Document(number, name, source.domain, _guarded(_cut(file), path))
    elif kind == ".jsonl":
        yield from _read_lines(number, source, path, name)
    else:
        yield from _read_rows(number, source, path, name)


def _read_lines(number: int, source: FileSource, path: Path, name: str) -> Iterator[Document]:
    with _open_text(path) as file:
        for line_number, line in enumerate(_guarded(_lines(file), path), 1):
            if not line.strip():
                continue
            where = f"{path}:{line_number}"
            if len(line) > LINE_CHARACTERS:
                raise OctavoError(
                    f"the line is longer than {LINE_CHARACTERS:,} characters", where=where,
                    expected="one document a line", fix="cut the document, or write it as a .txt file of its own",
                )  # fmt: skip
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise OctavoError(f"the line is not JSON: {error}", where=where) from error
            yield _from_mapping(number, source, value, f"{name}:{line_number}", where)


def _read_rows(number: int, source: FileSource, path: Path, name: str) -> Iterator[Document]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = [source.text_key, *([source.domain_key] if source.domain_key else [])]
    row = 0
    try:
        with _plain_file(path) as plain, pq.ParquetFile(plain) as file:
            missing = [column for column in columns if column not in file.schema_arrow.names]
            if missing:
                raise OctavoError(
                    f"the table has no column {missing[0]!r}",
                    where=path,
                    expected=f"one of {', '.join(file.schema_arrow.names)}",
                )
            for batch in file.iter_batches(batch_size=64, columns=columns):
                for value in batch.to_pylist():
                    row += 1
                    yield _from_mapping(number, source, value, f"{name}:{row}", f"{path} row {row}")
    except (pa.ArrowException, *_UNREADABLE) as error:
        raise OctavoError(f"the table cannot be read: {error}", where=path) from error


@contextmanager
def _plain_file(path: Path) -> Iterator[Path]:
    """The file; where it is compressed, a temporary one of what it holds: tables are read in leaps."""
    if path.suffix not in COMPRESSED:
        yield path
        return
    with tempfile.NamedTemporaryFile(suffix=".parquet") as plain, _open(path) as packed:
        shutil.copyfileobj(packed, plain, 1 << 20)
        plain.flush()
        yield Path(plain.name)


def _from_mapping(number: int, source: FileSource, value: object, name: str, where: str) -> Document:
    text = value.get(source.text_key) if isinstance(value, dict) else None
    if not isinstance(text, str):
        raise OctavoError(
            f"there is no text under {source.text_key!r}", where=where, fix="name the right key: text_key"
        )
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise OctavoError(
            f"the text holds half of a character, {text[error.start]!a}, which UTF-8 cannot write",
            where=where,
            fix="write the character whole: both halves of its surrogate pair",
        ) from error
    domain = source.domain
    if source.domain_key is not None:
        assert isinstance(value, dict)
        domain = value.get(source.domain_key)
        if not isinstance(domain, str) or not domain.replace("_", "").replace(".", "").isalnum():
            raise OctavoError(
                f"the domain under {source.domain_key!r} is {domain!r}",
                where=where,
                expected="letters, digits, dots and underscores",
            )
    return Document(number, name, domain, _cut(io.StringIO(text)))


def _cut(file: io.TextIOBase) -> Iterator[str]:
    """The text of a file in pieces that end at line ends; a line longer than a piece is cut."""
    lines: list[str] = []
    size = 0
    while line := file.readline(PIECE_CHARACTERS):
        lines.append(line)
        size += len(line)
        if size >= PIECE_CHARACTERS:
            yield "".join(lines)
            lines, size = [], 0
    if lines:
        yield "".join(lines)


def _lines(file: io.TextIOBase) -> Iterator[str]:
    """Lines; of one that is longer than a document may be, no more than shows it."""
    while line := file.readline(LINE_CHARACTERS + 1):
        yield line


def _guarded(pieces: Iterator[str] | io.TextIOBase, path: Path) -> Iterator[str]:
    """The pieces, with errors of encoding and compression turned into a message that names the file."""
    try:
        yield from pieces
    except UnicodeDecodeError as error:
        raise OctavoError(f"the file is not UTF-8 text: {error}", where=path, fix="convert it") from error
    except _UNREADABLE as error:
        raise OctavoError(f"the file cannot be read to its end: {error}", where=path) from error


_UNREADABLE = (OSError, EOFError, zlib.error, zstandard.ZstdError)
"""A disk's errors, and those of compressed files that are cut short or damaged."""


def _open_text(path: Path) -> io.TextIOWrapper:
    return io.TextIOWrapper(_open(path), encoding="utf-8", newline="\n")


def _open(path: Path) -> BinaryIO:
    """A file's bytes, unpacked. Raises OctavoError where it may not be read."""
    try:
        if path.suffix == ".gz":
            return gzip.open(path)  # type: ignore[return-value]
        return zstandard.open(path) if path.suffix == ".zst" else path.open("rb")
    except OSError as error:
        raise OctavoError(f"the file cannot be read: {error.strerror or error}", where=path) from error


def _format(path: Path) -> str | None:
    suffix = path.with_suffix("").suffix if path.suffix in COMPRESSED else path.suffix
    return suffix if suffix in SUFFIXES else None
