"""`csv`: a table with a header, a row for each step."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path

from octavo.errors import OctavoError
from octavo.imports.formats.console import LONGEST, damaged, lines, number
from octavo.imports.points import MEASURED, Point

COLUMNS = ("step", *MEASURED, "validation_loss")
"""What a table may hold."""


def read(path: Path, columns: Mapping[str, str]) -> Iterator[Point]:
    """The points of a table; `columns` says which of its columns is which of COLUMNS."""
    if unknown := sorted(set(columns) - set(COLUMNS)):
        raise OctavoError(f"there is no column {unknown[0]!r} to import", expected=f"of {', '.join(COLUMNS)}")
    reader = csv.reader((line for _, line in lines(path)), strict=False)
    csv.field_size_limit(LONGEST)
    try:
        header = next(reader, [])
        at = _places(path, header, columns)
        for row in reader:
            if not row:
                continue
            place = f"{path}:{reader.line_num}"
            try:
                yield _row(row, len(header), at, place)
            except (ValueError, OverflowError) as error:
                raise damaged(place, error) from None
    except csv.Error as error:
        raise damaged(f"{path}:{reader.line_num}", error) from None


def _places(path: Path, header: list[str], columns: Mapping[str, str]) -> dict[str, int]:
    """Which column of the table is which of COLUMNS."""
    shown = ", ".join(name[:30] for name in header[:12])
    if twice := sorted({name for name in header if header.count(name) > 1} & {columns.get(c, c) for c in COLUMNS}):
        raise OctavoError(f"the table has two columns {twice[0]!r}", where=f"{path}:1", fix="remove one")
    for ours in COLUMNS:
        theirs = columns.get(ours, ours)
        if theirs not in header and (ours in columns or ours == "step"):
            raise OctavoError(
                f"the table has no column {theirs!r}", where=f"{path}:1", expected=f"of {shown}",
                fix=f"say which it is: columns: {{{ours}: ...}}",
            )  # fmt: skip
    return {ours: header.index(columns.get(ours, ours)) for ours in COLUMNS if columns.get(ours, ours) in header}


def _row(row: list[str], fields: int, at: Mapping[str, int], place: str) -> Point:
    if len(row) != fields:
        raise ValueError(f"it has {len(row)} fields and the header {fields}")
    step = number(row[at["step"]])
    if not step.is_integer():
        raise ValueError(f"step {row[at['step']][:40]!r} is no whole number")
    said = {ours: number(row[index]) for ours, index in at.items() if ours != "step" and row[index].strip()}
    validation = {"": said.pop("validation_loss")} if "validation_loss" in said else {}
    return Point(int(step), place, said, validation)
