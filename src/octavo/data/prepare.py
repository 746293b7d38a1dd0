"""`octavo data`: text -> tokens, once per data set. Streams: memory does not grow with the text.

The folder is made beside its place and renamed when it is whole, so an interrupted preparation leaves nothing that
could be taken for a data set, and of two at once the first to end wins. Two passes: one over (some of) the training
text where a tokenizer is trained, one to tokenise everything.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from octavo.configuration import dotted
from octavo.data.checks import check_domains
from octavo.data.documents import Document, file_name, is_held_out, read_source, source_files, source_name
from octavo.data.indexed import IndexedWriter, token_type
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
from octavo.files import sha256, unwritable, write_json, write_text
from octavo.layout import repository

DOCUMENT_ROWS = 100_000

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
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as name:
            manifest = _Preparation(data, tokenizer, Path(name), console, place).make(folder.name)
            _move(Path(name), folder)
    except OSError as error:
        raise unwritable(folder, error) from error
    console.print(f"{folder}: {_summary(manifest)}")
    return manifest


class _Preparation:
    """One preparation in a temporary folder."""

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
                tokenizer = build_tokenizer(self.config, self._training_text())
            write_text(self.folder / "tokenizer.json", tokenizer.to_str())
            end = tokenizer.token_to_id(end_of_document(self.config))
            assert end is not None, "checked where the tokenizer was made"
            self._tokenise(tokenizer, end, task)
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

    def _tokenise(self, tokenizer: tokenizers.Tokenizer, end: int, task: Any) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        schema = pa.schema([(name, kind) for name, kind in DOCUMENT_FIELDS])
        rows: list[tuple[Any, ...]] = []
        with ExitStack() as stack:
            writers: dict[str, IndexedWriter] = {}
            table = stack.enter_context(pq.ParquetWriter(self.folder / "documents.parquet", schema, compression="zstd"))

            def flush() -> None:
                columns = [
                    pa.array(column, kind)
                    for column, (_, kind) in zip(zip(*rows, strict=True), DOCUMENT_FIELDS, strict=True)
                ]
                table.write_table(pa.Table.from_arrays(columns, schema=schema))
                rows.clear()

            for number, source in enumerate(self.data.sources):
                unmatched = set(() if isinstance(source, IndexedSource) else source.held_out or ())
                with asked_by(self.place, "data", "sources", number):
                    tokens, size = 0, 0  # of the document so far
                    for piece in _encoded(read_source(number, source), tokenizer):
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
                        rows.append((number, document.name, document.domain, split, tokens))
                        tokens = size = 0
                        if len(rows) == DOCUMENT_ROWS:
                            flush()
                        done = sum(count.tokens for count in self.counts.values())
                        self.progress.update(task, description=f"{source_name(source)}: {done:,} tokens")
                self._check_source(number, unmatched)
            if rows:
                flush()

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
    """The documents' pieces in order, as many encoded at a time as there are cores: memory is bounded by theirs."""
    cores = len(os.sched_getaffinity(0))

    def encode(document: Document, piece: str | np.ndarray, last: bool) -> _Encoded:
        if isinstance(piece, np.ndarray):
            return _Encoded(document, piece, 0, last)
        (encoding,) = tokenizer.encode_batch_fast([piece], add_special_tokens=False)
        return _Encoded(document, np.asarray(encoding.ids, np.int64), len(piece.encode("utf-8")), last)

    with ThreadPoolExecutor(cores) as pool:
        ahead: deque[Future[_Encoded]] = deque()
        for document in documents:
            piece: str | np.ndarray | None = next(document.pieces, "")
            while piece is not None:
                following = next(document.pieces, None)
                ahead.append(pool.submit(encode, document, piece, following is None))
                piece = following
                if len(ahead) > cores:
                    yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _move(made: Path, folder: Path) -> None:
    """Put a whole data set into its place; a folder without a manifest (a log may be there) is filled."""
    folder.mkdir(exist_ok=True)
    names = sorted(path.name for path in made.iterdir())
    for name in sorted(names, key=lambda name: name == "manifest.json"):  # the manifest last
        shutil.move(made / name, folder / name)
    with suppress(FileExistsError):
        made.mkdir()


def _summary(manifest: Manifest) -> str:
    tokens = {split: sum(count.tokens for count in domains.values()) for split, domains in manifest.splits.items()}
    domains = ", ".join(manifest.splits["validation"])
    return f"{tokens['train']:,} training and {tokens['validation']:,} validation tokens ({domains})"
