"""`octavo data`: text -> tokens, once per data set. Streams: memory does not grow with the text.

The data set is made in `.<name>.partial` beside its place and moved there when it is whole, so an interrupted
preparation leaves nothing that could be taken for a data set. One that was killed left a record of how far its files
are good; the next goes on from there, if text and tokenizer are the same. Of two at once one waits for the other.
Two passes: one over (some of) the training text where a tokenizer is trained, one to tokenise everything.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
import tokenizers
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from octavo.configuration import dotted
from octavo.data.checks import check_domains
from octavo.data.documents import Document, file_name, is_held_out, read_source, source_files, source_name
from octavo.data.indexed import IndexedWriter, open_behind, token_type
from octavo.data.manifest import (
    Counts,
    FileRecord,
    Manifest,
    SourceRecord,
    Split,
    check_files,
    check_sources,
    read_manifest,
)
from octavo.data.tokenizers import build_tokenizer, end_of_document
from octavo.errors import OctavoError, asked_by
from octavo.experiment.config import BpeTokenizer, Data, FileTokenizer, IndexedSource, PackageSource, Source, Tokenizer
from octavo.experiment.load import vocabulary_size
from octavo.files import fingerprint, sha256, unwritable, write_json, write_text
from octavo.layout import repository
from octavo.records import SCHEMA_VERSION, Record, read_record

DOCUMENT_ROWS = 100_000
KEPT_TOKENS = 1 << 22
"""After so many tokens, and the end of a document, what is done is kept for a preparation that is killed."""
SHOWN_TOKENS = 1 << 16
"""Steps of the count that is shown."""
BATCH_CHARACTERS = 1 << 20
"""Text that is encoded at a time."""
KEPT, ROWS = "kept.json", "documents.jsonl"
"""Files of a preparation alone: how far it is, and its list of documents."""

DOCUMENT_FIELDS = (
    ("source", "int32"),
    ("name", "string"),
    ("domain", "string"),
    ("split", "string"),
    ("tokens", "int64"),
)
"""Columns of documents.parquet, in the order of the sources; a split's documents are in the order of its .idx file."""


def _dotted(*keys: str | int) -> str:
    return dotted(keys)


def prepare(
    data: Data, tokenizer: Tokenizer, folder: Path, console: Console, place: Callable[..., str] = _dotted
) -> Manifest:
    """Make the data set in `folder` unless it is there; its manifest.

    `place` tells, for messages, where a key of the experiment stands.
    Raises OctavoError for missing or unreadable text, a domain without held-out or training documents, a tokenizer that
    does not fit, a full disk, and a data set that is there but differs from its manifest, or whose text does.
    """
    if (folder / "manifest.json").exists():
        manifest = read_manifest(folder)
        check_files(folder, manifest)
        with asked_by(place, "data"):
            check_sources(data, tokenizer, folder)
        console.print(f"{folder}: there already, {_summary(manifest)}")
        return manifest
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _alone(folder.with_name(f".{folder.name}.lock")):
            if (folder / "manifest.json").exists():  # another process made it meanwhile
                return read_manifest(folder)
            for left in folder.parent.glob(f".{folder.name}.*/"):
                if left != partial:  # of a version of Octavo that did not go on
                    shutil.rmtree(left)
            partial.mkdir(exist_ok=True)
            try:
                manifest = _Preparation(data, tokenizer, partial, console, place).make(folder.name)
                _move(partial, folder)
            except Exception:  # what an interrupted or killed one did is gone on from
                shutil.rmtree(partial, ignore_errors=True)
                raise
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise unwritable(folder, error) from error
    console.print(f"{folder}: {_summary(manifest)}")
    return manifest


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold a lock file, waiting for whoever has it; it is gone afterwards, and may be gone when it is had."""
    while True:
        with path.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if _is_at(lock, path):
                try:
                    yield
                finally:
                    path.unlink(missing_ok=True)
                return


def _is_at(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


class _Kept(Record):
    """`kept.json`: how far the files of a preparation are good, at the end of a document."""

    schema_version: int = SCHEMA_VERSION
    of: str
    """A hash of what the files are made of: `_Preparation.key`."""
    source: int
    """The source that was being read."""
    unmatched: list[str]
    """Its patterns of held-out names that no document matched so far."""
    documents: dict[int, int]
    """Source -> documents that are done."""
    counts: list[tuple[Split, str, Counts]]
    writers: dict[str, tuple[int, int]]
    """File name -> documents and tokens."""
    rows: int
    """Bytes of the list of documents."""


class _Preparation:
    """One preparation in its own folder."""

    def __init__(
        self, data: Data, config: Tokenizer, folder: Path, console: Console, place: Callable[..., str]
    ) -> None:
        self.data, self.config, self.folder, self.place = data, config, folder, place
        self.counts: dict[tuple[Split, str], Counts] = {}
        self.documents: dict[int, int] = defaultdict(int)
        self.files: dict[int, list[Path]] = {}
        for number, source in enumerate(data.sources):
            with asked_by(place, "data", "sources", number):
                self.files[number] = source_files(source)
        with asked_by(place, "tokenizer"):
            self.vocabulary_size = vocabulary_size(config)
        self.progress = Progress(
            SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=console, transient=True
        )

    def make(self, identifier: str) -> Manifest:
        with self.progress:
            task = self.progress.add_task("training the tokenizer")
            with asked_by(self.place, "tokenizer"):
                kept = self._kept()
                tokenizer = self._tokenizer(kept)
            end = tokenizer.token_to_id(end_of_document(self.config))
            assert end is not None, "checked where the tokenizer was made"
            self._tokenise(tokenizer, end, task, kept)
            self._write_documents()
        check_domains(self.counts.keys(), self.place)
        manifest = self._manifest(identifier, end)
        write_json(self.folder / "manifest.json", manifest.model_dump(mode="json"))
        return manifest

    def _training_text(self) -> Iterator[str]:
        """Text of the training split to train a tokenizer on: an equal share of each source, from its beginning."""
        assert isinstance(self.config, BpeTokenizer)
        texts = [number for number, source in enumerate(self.data.sources) if not isinstance(source, IndexedSource)]
        for number in texts:
            left = self.config.training_bytes // len(texts)
            with asked_by(self.place, "data", "sources", number):
                for document in read_source(number, self.data.sources[number]):
                    if left <= 0:
                        break
                    if is_held_out(document, self.data):
                        continue
                    for piece in document.pieces:
                        assert isinstance(piece, str), "not an indexed source"
                        yield piece
                        left -= len(piece)
                        if left <= 0:
                            break

    @cached_property
    def key(self) -> str:
        """Of what makes the bytes: what is asked for, the text's files by size and time, the library."""
        files = [path for paths in self.files.values() for path in paths]
        if isinstance(self.config, FileTokenizer):
            files.append(repository() / self.config.path)
        seen = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
        return fingerprint([self.data.model_dump(mode="json"), self.config.model_dump(mode="json"), seen,
                            tokenizers.__version__])  # fmt: skip

    def _kept(self) -> _Kept | None:
        """How far an earlier preparation of the same came; without one its folder is emptied."""
        with suppress(OctavoError):
            kept = read_record(self.folder / KEPT, _Kept, made_by="octavo data")
            files = [*(f"{name}.bin" for name in kept.writers), *(f"{name}.lengths" for name in kept.writers)]
            if kept.of == self.key and all((self.folder / name).exists() for name in (*files, ROWS, "tokenizer.json")):
                return kept
        for path in self.folder.iterdir():
            path.unlink()
        return None

    def _keep(self, source: int, unmatched: set[str], writers: dict[str, IndexedWriter], rows: IO[bytes]) -> None:
        """Record how far the files are good, when they are on disk."""
        for writer in writers.values():
            writer.flush()
        rows.flush()
        os.fsync(rows.fileno())
        kept = _Kept(
            of=self.key,
            source=source,
            unmatched=sorted(unmatched),
            documents=dict(self.documents),
            counts=[(split, domain, count) for (split, domain), count in self.counts.items()],
            writers={name: (writer.documents, writer.tokens) for name, writer in writers.items()},
            rows=rows.tell(),
        )
        write_json(self.folder / KEPT, kept.model_dump(mode="json"))

    def _tokenizer(self, kept: _Kept | None) -> tokenizers.Tokenizer:
        if kept and isinstance(self.config, BpeTokenizer):
            found = tokenizers.Tokenizer.from_file(str(self.folder / "tokenizer.json"))
            found.encode_special_tokens = True
            return found
        tokenizer = build_tokenizer(self.config, self._training_text())
        write_text(self.folder / "tokenizer.json", tokenizer.to_str())
        return tokenizer

    def _tokenise(self, tokenizer: tokenizers.Tokenizer, end: int, task: Any, kept: _Kept | None) -> None:
        with ExitStack() as stack:
            writers: dict[str, IndexedWriter] = {}
            rows = stack.enter_context(open_behind(self.folder / ROWS, kept.rows if kept else 0))
            if kept:
                self.progress.console.print(f"going on after {sum(kept.documents.values()):,} documents")
                self.documents.update(kept.documents)
                self.counts = {(split, domain): count for split, domain, count in kept.counts}
                for name, place in kept.writers.items():
                    writers[name] = stack.enter_context(IndexedWriter(self.folder / name, self.vocabulary_size, *place))
            since, shown = 0, 0  # tokens that are not kept yet, and from how many on they are shown again
            done = sum(count.tokens for count in self.counts.values())
            for number, source in enumerate(self.data.sources):
                if kept and number < kept.source:
                    continue
                unmatched = set(() if isinstance(source, IndexedSource) else source.held_out or ())
                if kept and number == kept.source:
                    unmatched = set(kept.unmatched)
                with asked_by(self.place, "data", "sources", number):
                    tokens, size = 0, 0  # of the document so far
                    documents = islice(read_source(number, source), self.documents[number], None)
                    for piece in _encoded(documents, tokenizer):
                        document = piece.document
                        split: Split = "validation" if is_held_out(document, self.data) else "train"
                        name = "train" if split == "train" else f"validation-{document.domain}"
                        if name not in writers:
                            writer = IndexedWriter(self.folder / name, self.vocabulary_size)
                            writers[name] = stack.enter_context(writer)
                        tokens += self._write(piece, writers[name], end)
                        size += piece.size
                        if not piece.last:
                            continue
                        unmatched = {pattern for pattern in unmatched if not fnmatch(document.name, pattern)}
                        indexed = isinstance(source, IndexedSource)
                        self._count(document, split, tokens, None if indexed else size)
                        row = (number, document.name, document.domain, split, tokens)
                        rows.write(json.dumps(row).encode() + b"\n")
                        since, done = since + tokens, done + tokens
                        tokens = size = 0
                        if since >= KEPT_TOKENS:
                            since = 0
                            self._keep(number, unmatched, writers, rows)
                        if done >= shown:
                            self.progress.update(task, description=f"{source_name(source)}: {done:,} tokens")
                            shown = done + SHOWN_TOKENS
                self._check_source(number, unmatched)

    def _write_documents(self) -> None:
        """The list of documents as a table."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        schema = pa.schema([(name, kind) for name, kind in DOCUMENT_FIELDS])
        spooled = self.folder / ROWS
        with (
            pq.ParquetWriter(self.folder / "documents.parquet", schema, compression="zstd") as table,
            spooled.open("rb") as lines,
        ):
            while rows := [json.loads(line) for line in islice(lines, DOCUMENT_ROWS)]:
                columns = [
                    pa.array(column, kind)
                    for column, (_, kind) in zip(zip(*rows, strict=True), DOCUMENT_FIELDS, strict=True)
                ]
                table.write_table(pa.Table.from_arrays(columns, schema=schema))
        for name in (ROWS, KEPT):
            (self.folder / name).unlink(missing_ok=True)

    def _check_source(self, number: int, unmatched: set[str]) -> None:
        name = source_name(self.data.sources[number])
        if not self.documents[number]:
            raise OctavoError(f"the source {name} has no documents", where=self.place("data", "sources", number))
        if unmatched:
            raise OctavoError(
                f"no document of {name} matches {min(unmatched)!r}",
                where=self.place("data", "sources", number, "held_out"),
                expected="patterns that each match a document's name",
                fix="documents.parquet of a prepared data set lists the names; * matches slashes, too",
            )

    def _write(self, piece: _Encoded, writer: IndexedWriter, end: int) -> int:
        """Write a piece's tokens, and the end of its document after the last; how many."""
        before, document, tokens = writer.tokens, piece.document, piece.tokens
        if isinstance(self.data.sources[document.source], IndexedSource):
            self._check_range(tokens, document)
            # an end of document that is there already is not written twice
            writer.add(tokens[:-1] if len(tokens) and tokens[-1] == end else tokens)
        else:
            self._check_ends(tokens, document, end)
            writer.add(tokens)
        if piece.last:
            writer.add(np.array([end]))
            writer.end_document()
        return writer.tokens - before

    def _check_ends(self, tokens: np.ndarray, document: Document, end: int) -> None:
        """A tokenizer may read its end of a document from text, where it does not call the token special."""
        if (tokens == end).any():
            raise OctavoError(
                f"document {document.name} spells {end_of_document(self.config)!r}, which the tokenizer takes for the "
                "end of a document",
                where=source_name(self.data.sources[document.source]),
                expected="text without it, or a tokenizer to which it is special",
                fix='mark the token as "special": true in tokenizer.json, or name another: tokenizer.end_of_document',
            )

    def _check_range(self, tokens: np.ndarray, document: Document) -> None:
        if len(tokens) and int(tokens.max()) >= self.vocabulary_size:
            raise OctavoError(
                f"document {document.name} has token {int(tokens.max())}, the tokenizer {self.vocabulary_size} tokens",
                where=source_name(self.data.sources[document.source]),
                expected="the tokenizer that the data set was made with",
            )

    def _count(self, document: Document, split: Split, tokens: int, size: int | None) -> None:
        key = (split, document.domain)
        count = self.counts.setdefault(key, Counts(documents=0, tokens=0, bytes=0))
        count.documents += 1
        count.tokens += tokens
        count.bytes = None if size is None or count.bytes is None else count.bytes + size
        self.documents[document.source] += 1

    def _manifest(self, identifier: str, end: int) -> Manifest:
        splits: dict[Split, dict[str, Counts]] = {"train": {}, "validation": {}}
        for (split, domain), count in sorted(self.counts.items()):
            splits[split][domain] = count
        files = sorted(path for path in self.folder.iterdir() if path.is_file())
        return Manifest(
            identifier=identifier,
            sources=[self._source(number, source) for number, source in enumerate(self.data.sources)],
            tokenizer_sha256=(
                sha256(repository() / self.config.path) if isinstance(self.config, FileTokenizer) else None
            ),
            splits=splits,
            vocabulary_size=self.vocabulary_size,
            end_of_document=end,
            token_type="uint16" if token_type(self.vocabulary_size) is np.uint16 else "int32",
            files={path.name: FileRecord(bytes=path.stat().st_size, sha256=sha256(path)) for path in files},
        )

    def _source(self, number: int, source: Source) -> SourceRecord:
        return SourceRecord(
            name=source_name(source),
            kind=source.kind,
            license=source.license if isinstance(source, PackageSource) else None,
            sha256={file_name(source, path): sha256(path) for path in self.files[number]},
            documents=self.documents[number],
        )


@dataclass(frozen=True)
class _Encoded:
    """A piece of a document."""

    document: Document
    tokens: np.ndarray
    size: int
    """Bytes of text that they are."""
    last: bool
    """Whether the document ends with it."""


def _encoded(documents: Iterator[Document], tokenizer: tokenizers.Tokenizer) -> Iterator[_Encoded]:
    """The documents' pieces in order, a batch of them encoded on all cores while the batch before is taken.

    Memory is bounded by the batches.
    """
    with ThreadPoolExecutor(1) as pool:
        ahead: deque[Future[list[_Encoded]]] = deque()
        for batch in _batches(documents):
            ahead.append(pool.submit(_encode, batch, tokenizer))
            if len(ahead) > 1:
                yield from ahead.popleft().result()
        while ahead:
            yield from ahead.popleft().result()


_Piece = tuple[Document, "str | np.ndarray", bool]


def _batches(documents: Iterator[Document]) -> Iterator[list[_Piece]]:
    """Pieces, each with its document and whether that ends with it; as many as make a batch."""
    batch: list[_Piece] = []
    length = 0
    for document in documents:
        piece: str | np.ndarray | None = next(document.pieces, "")
        while piece is not None:
            following = next(document.pieces, None)
            batch.append((document, piece, following is None))
            length += len(piece)
            piece = following
            if length >= BATCH_CHARACTERS:
                yield batch
                batch, length = [], 0
    if batch:
        yield batch


def _encode(batch: list[_Piece], tokenizer: tokenizers.Tokenizer) -> list[_Encoded]:
    texts = [piece for _, piece, _ in batch if isinstance(piece, str)]
    encodings = iter(tokenizer.encode_batch_fast(texts, add_special_tokens=False))
    return [
        _Encoded(document, piece, 0, last)
        if isinstance(piece, np.ndarray)
        else _Encoded(document, np.asarray(next(encodings).ids, np.int64), len(piece.encode("utf-8")), last)
        for document, piece, last in batch
    ]


def _move(made: Path, folder: Path) -> None:
    """Put a whole data set into its place; a folder without a manifest (a log may be there) is filled."""
    folder.mkdir(exist_ok=True)
    names = sorted(path.name for path in made.iterdir())
    for name in sorted(names, key=lambda name: name == "manifest.json"):  # the manifest last
        shutil.move(made / name, folder / name)


def _summary(manifest: Manifest) -> str:
    tokens = {split: sum(count.tokens for count in domains.values()) for split, domains in manifest.splits.items()}
    domains = ", ".join(manifest.splits["validation"])
    return f"{tokens['train']:,} training and {tokens['validation']:,} validation tokens ({domains})"
