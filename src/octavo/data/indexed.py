"""Megatron's indexed data sets, `<prefix>.bin` and `<prefix>.idx`, written and read without torch.

The format is that of megatron.core.datasets.indexed_dataset: the .bin file holds the tokens of all documents one after
another; the .idx file holds, little-endian,

    9 bytes   MMIDIDX\\0\\0
    uint64    version, 1
    uint8     code of the tokens' type: 4 int32, 8 uint16
    uint64    number of sequences
    uint64    number of document bounds
    int32     length of each sequence, in tokens
    int64     where each sequence begins in the .bin file, in bytes
    int64     document bounds: the first sequence of each document, and the number of sequences

Here every document is one sequence. Memory does not grow with the data: lengths are spooled beside the index.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import numpy as np

from octavo.errors import OctavoError

HEADER = b"MMIDIDX\x00\x00"
VERSION = 1
TYPE_CODES: dict[type[np.integer], int] = {np.int32: 4, np.uint16: 8}
SMALL_VOCABULARY = 65_500
"""Below it Megatron stores tokens in two bytes."""
CHUNK = 1 << 20


def token_type(vocabulary_size: int) -> type[np.integer]:
    """The type that Megatron chooses for a vocabulary."""
    return np.uint16 if vocabulary_size < SMALL_VOCABULARY else np.int32


class IndexedWriter:
    """Writes one data set, document by document; a context manager. The files are whole when the block has ended."""

    def __init__(self, prefix: Path, vocabulary_size: int, documents: int = 0, tokens: int = 0) -> None:
        """`documents` and `tokens`: go on behind so many of what an earlier writer of the prefix had flushed.

        Raises OSError where that is not there.
        """
        self.prefix = prefix
        self.dtype = token_type(vocabulary_size)
        self.documents = documents
        self.tokens = tokens
        self._length = 0
        self._bin = open_behind(Path(f"{prefix}.bin"), tokens * self.dtype().itemsize)
        self._lengths = open_behind(Path(f"{prefix}.lengths"), 4 * documents)

    def flush(self) -> None:
        """Force what was written to disk."""
        for file in (self._bin, self._lengths):
            file.flush()
            os.fsync(file.fileno())

    def add(self, tokens: np.ndarray) -> None:
        """Append a part of the current document; integers."""
        self._bin.write(np.asarray(tokens, dtype=self.dtype).tobytes())
        self._length += len(tokens)

    def end_document(self) -> None:
        """The current document is whole."""
        self._lengths.write(struct.pack("<i", self._length))
        self.tokens += self._length
        self.documents += 1
        self._length = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._bin, self._lengths:
            if kind is None:
                self._write_index()
                Path(self._lengths.name).unlink()

    def _write_index(self) -> None:
        with Path(f"{self.prefix}.idx").open("wb") as index:
            index.write(HEADER + struct.pack("<QB", VERSION, TYPE_CODES[self.dtype]))
            index.write(struct.pack("<QQ", self.documents, self.documents + 1))
            for lengths in self._read_lengths():
                index.write(lengths.tobytes())
            begin = 0
            for lengths in self._read_lengths():
                ends = begin + np.cumsum(lengths, dtype=np.int64) * self.dtype().itemsize
                index.write(np.concatenate(([begin], ends[:-1])).astype("<i8").tobytes())
                begin = int(ends[-1])
            for start in range(0, self.documents + 1, CHUNK):
                index.write(np.arange(start, min(start + CHUNK, self.documents + 1), dtype="<i8").tobytes())

    def _read_lengths(self) -> Iterator[np.ndarray]:
        self._lengths.seek(0)
        while block := self._lengths.read(4 * CHUNK):
            yield np.frombuffer(block, dtype="<i4")


def open_behind(path: Path, size: int) -> IO[bytes]:
    """A file to read and write from the place `size` on; what it has behind that is cut off."""
    file = path.open("r+b" if size else "w+b")
    if file.seek(0, os.SEEK_END) < size:
        file.close()
        raise FileNotFoundError(f"{path} is cut short")
    file.truncate(size)
    file.seek(size)
    return file


def read_documents(prefix: Path) -> Iterator[np.ndarray]:
    """The tokens of each document of a data set, mapped from disk."""
    dtype, lengths, bounds = _read_index(prefix)
    path = Path(f"{prefix}.bin")
    expected = int(lengths.sum(dtype=np.int64)) * dtype().itemsize
    if not path.exists() or path.stat().st_size != expected:
        raise OctavoError(
            f"the data set's tokens are {path.stat().st_size if path.exists() else 0:,} bytes",
            where=path,
            expected=f"{expected:,} bytes, as its index says",
            fix="the file is cut short or belongs to another index: copy both again",
        )
    tokens = np.memmap(path, dtype=dtype, mode="r") if expected else np.empty(0, dtype)
    ends = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))
    for first, last in pairwise(bounds):
        yield tokens[ends[first] : ends[last]]


def _read_index(prefix: Path) -> tuple[type[np.integer], np.ndarray, np.ndarray]:
    path = Path(f"{prefix}.idx")
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise OctavoError("the data set's index is missing", where=path, expected="<prefix>.idx and .bin") from None
    size = len(HEADER) + 8 + 1 + 16
    version, code, sequences, documents = struct.unpack_from("<QBQQ", data, 9) if len(data) >= size else (0, 0, 0, 0)
    types = {number: dtype for dtype, number in TYPE_CODES.items()}
    if not data.startswith(HEADER) or version != VERSION or code not in types:
        raise OctavoError(
            "the file is not a Megatron index of int32 or uint16 tokens", where=path, expected="MMIDIDX, version 1"
        )
    if len(data) < size + 12 * sequences + 8 * documents:
        raise OctavoError("the index is cut short", where=path, fix="copy or make it again")
    lengths = np.frombuffer(data, "<i4", sequences, size)
    return types[code], lengths, np.frombuffer(data, "<i8", documents, size + 12 * sequences)
