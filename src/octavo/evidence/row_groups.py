"""Parquet files of one schema, one behind the other in one file, without decoding what is in them.

Row groups are copied as they are; the footer, which says where they lie, is written anew with every place moved. For
that pyarrow has nothing: its `append_row_groups` names other files and moves nothing. A footer is the struct
FileMetaData of the format's parquet.thrift, in Thrift's compact protocol
(github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md).

The files must be ones that pyarrow wrote and that were not changed since: the caller knows their hashes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

MAGIC = b"PAR1"

_ROWS, _ROW_GROUPS = 3, 4
"""Fields of FileMetaData."""
_MOVED, _ORDINAL = "moved", "ordinal"
_COLUMN_METADATA = dict.fromkeys((9, 10, 11, 14), _MOVED)
"""Where pages of data, of an index and of a dictionary and a filter begin."""
_COLUMN = {2: _MOVED, 3: _COLUMN_METADATA, 4: _MOVED, 6: _MOVED}
"""file_offset, meta_data, offset_index_offset, column_index_offset."""
_ROW_GROUP = {1: _COLUMN, 5: _MOVED, 7: _ORDINAL}
"""columns, file_offset, ordinal."""

_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _, _STRUCT = range(1, 13)
_WIDTHS = {_TRUE: 0, _FALSE: 0, _BYTE: 1, _DOUBLE: 8}


def join(parts: Sequence[Path], into: Path) -> None:
    """Write the row groups of `parts`, of which there is at least one, one behind the other into a file."""
    rows, groups, first = 0, [], None
    with into.open("wb") as file:
        file.write(MAGIC)
        for part in parts:
            with part.open("rb") as source:
                body, footer = _footer(source)
                found = _Footer(footer, file.tell() - len(MAGIC), len(groups))
                source.seek(len(MAGIC))
                _copy(source, file, body - len(MAGIC))
            rows, groups, first = rows + found.rows, groups + found.groups, first or found
        assert first is not None
        footer = first.of(rows, groups)
        file.write(footer + len(footer).to_bytes(4, "little") + MAGIC)


def _footer(source: Any) -> tuple[int, bytes]:
    """Where the footer of a file begins, and it."""
    end = source.seek(-8, 2)
    length = int.from_bytes(source.read(4), "little")
    source.seek(end - length)
    return end - length, source.read(length)


def _copy(source: Any, file: Any, size: int) -> None:
    while size:
        block = source.read(min(size, 1 << 20))
        file.write(block)
        size -= len(block)


class _Footer:
    """A footer whose row groups lie `moved` bytes further on, behind `before` others."""

    def __init__(self, data: bytes, moved: int, before: int) -> None:
        self._data, self._at, self._moved, self._ordinal = data, 0, moved, before
        self.rows, self.groups = 0, list[bytes]()
        self._rest: list[tuple[int, bytes, bytes]] = []
        """Field, its head and its value."""
        for field, kind, head in self._fields():
            if field == _ROW_GROUPS:
                for _ in range(self._list()[1]):
                    self.groups.append(self._struct(_ROW_GROUP))
                    self._ordinal += 1
                value = b""
            else:
                value = self._value(kind, None)
            if field == _ROWS:
                self.rows = _unzigzag(value)
            self._rest.append((field, head, value))

    def of(self, rows: int, groups: list[bytes]) -> bytes:
        """The same footer with so many rows in these row groups."""
        size = len(groups)
        list_head = bytes([size << 4 | _STRUCT]) if size < 15 else bytes([0xF0 | _STRUCT]) + _varint(size)
        own = {_ROWS: _varint(rows << 1), _ROW_GROUPS: list_head + b"".join(groups)}
        return b"".join(head + own.get(field, value) for field, head, value in self._rest) + b"\0"

    def _number(self) -> int:
        value, shift = 0, 0
        while True:
            byte = self._data[self._at]
            self._at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7

    def _fields(self) -> Iterator[tuple[int, int, bytes]]:
        """Number, kind and head of each field of a struct; the caller takes the value."""
        field = 0
        while byte := self._data[self._at]:
            start = self._at
            self._at += 1
            number = self._number() if byte < 16 else 0
            field = field + (byte >> 4) if byte >= 16 else number >> 1
            yield field, byte & 15, self._data[start : self._at]
        self._at += 1

    def _list(self) -> tuple[int, int]:
        """Kind and number of a list's elements."""
        byte = self._data[self._at]
        self._at += 1
        return byte & 15, self._number() if byte >= 0xF0 else byte >> 4

    def _struct(self, rules: dict[int, Any]) -> bytes:
        parts = [head + self._value(kind, rules.get(field)) for field, kind, head in self._fields()]
        return b"".join(parts) + b"\0"

    def _value(self, kind: int, rule: Any) -> bytes:
        """A value, with what the rule names in it moved."""
        start = self._at
        if kind == _STRUCT:
            return self._struct(rule or {})
        if kind in (_LIST, _SET):
            of, count = self._list()
            head = self._data[start : self._at]
            if of in (_TRUE, _FALSE):
                self._at += count
                return self._data[start : self._at]
            return head + b"".join(self._value(of, rule) for _ in range(count))
        if kind in (_I16, _I32, _I64):
            number = self._number()
            if rule == _MOVED and number:  # 0 where it is not said
                return _varint(number + (self._moved << 1))
            if rule == _ORDINAL:
                return _varint(self._ordinal << 1)
        elif kind == _BINARY:
            length = self._number()
            self._at += length
        else:
            self._at += _WIDTHS[kind]
        return self._data[start : self._at]


def _varint(number: int) -> bytes:
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _unzigzag(value: bytes) -> int:
    """A number that is not negative."""
    return sum((byte & 0x7F) << 7 * place for place, byte in enumerate(value)) >> 1
