"""The rows of a ladder: one trained run each, in the columns that `octavo leverage` reads, and the rungs they make.

A *rung* is the runs of one architecture of the same size, tokens and FLOPs; they differ in their seed.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from octavo.errors import OctavoError, shown
from octavo.files import read_bytes, write_text

REQUIRED = ("architecture", "flops", "validation_loss")
SAME_RUNG = 0.005
"""Relative difference of FLOPs, parameters or tokens up to which runs are of one rung."""
MOST_ROWS = 100_000


@dataclass(frozen=True)
class Row:
    """One run that was trained to its planned end. None: not known."""

    architecture: str
    flops: float
    """Model FLOPs of the whole training."""
    validation_loss: float
    """Nats per token, on the same text for all rows."""
    active_parameters: float | None = None
    total_parameters: float | None = None
    tokens: float | None = None
    """Trained tokens."""
    device_hours: float | None = None
    cost: float | None = None
    """In any one currency."""
    seed: int | None = None


COLUMNS = (
    "architecture", "active_parameters", "total_parameters", "tokens", "flops", "validation_loss", "device_hours",
    "cost", "seed",
)  # fmt: skip
"""The columns of a table, in the order in which `write_rows` writes them."""


@dataclass(frozen=True)
class Rung:
    """The runs of one architecture that differ in nothing but their seed."""

    rows: tuple[Row, ...]

    def log_mean(self, column: str) -> float | None:
        """Mean logarithm over the runs that have this column; None where none has."""
        known = [value for row in self.rows if (value := getattr(row, column)) is not None]
        return float(np.mean(np.log(known))) if known else None

    @property
    def log_flops(self) -> float:
        """Logarithm of the FLOPs of one run."""
        return float(np.mean([math.log(row.flops) for row in self.rows]))

    @property
    def log_losses(self) -> np.ndarray:
        """Logarithm of each run's validation loss."""
        return np.log([row.validation_loss for row in self.rows])


def rungs(rows: Iterable[Row], architecture: str) -> tuple[Rung, ...]:
    """The rungs of an architecture, the one of fewest FLOPs first."""
    found: list[list[Row]] = []
    for row in sorted((row for row in rows if row.architecture == architecture), key=_order):
        home = next((rung for rung in reversed(found) if _alike(rung[0], row)), None)
        if home is None:
            found.append([row])
        else:
            home.append(row)
    return tuple(Rung(tuple(rung)) for rung in found)


def architectures(rows: Iterable[Row]) -> list[str]:
    """The names of the architectures, by alphabet."""
    return sorted({row.architecture for row in rows})


def read_rows(path: Path) -> list[Row]:
    """The rows of a CSV file; columns beside COLUMNS are left unread.

    Raises OctavoError with line and column for what is no table of runs.
    """
    try:
        text = read_bytes(path, most=1 << 26).decode("utf-8-sig")
    except FileNotFoundError:
        raise OctavoError(
            "there is no such file", where=path, expected=f"a CSV file with the columns {_names()}"
        ) from None
    except UnicodeDecodeError as error:
        raise OctavoError(f"the file is no text in UTF-8: {error}", where=path) from None
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        _check_header(header, path)
        rows = []
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            rows.append(
                _row(dict(zip(header, cells, strict=False)), len(cells), len(header), f"{path}:{reader.line_num}")
            )
            if len(rows) > MOST_ROWS:
                raise OctavoError("the table is too long", where=path, expected=f"at most {MOST_ROWS:,} rows")
    except csv.Error as error:
        raise OctavoError(f"the line is no CSV: {error}", where=f"{path}:{reader.line_num}") from None
    if not rows:
        raise OctavoError("the table has no rows", where=path, expected="a row for each trained run")
    return rows


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write rows as the CSV file that `read_rows` reads."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in sorted(rows, key=lambda row: (row.architecture, _order(row))):
        writer.writerow("" if (value := getattr(row, name)) is None else value for name in COLUMNS)
    write_text(path, out.getvalue())


def _names() -> str:
    return ", ".join(COLUMNS)


def _check_header(header: Sequence[str], path: Path) -> None:
    where = f"{path}:1"
    if missing := [name for name in REQUIRED if name not in header]:
        raise OctavoError(
            f"the table has no column {missing[0]}", where=where,
            expected=f"a header with {_names()}; found {shown(', '.join(header))}",
            fix=f"name the columns so; only {', '.join(REQUIRED)} must be there",
        )  # fmt: skip
    if twice := sorted({name for name in header if name in COLUMNS and header.count(name) > 1}):
        raise OctavoError(f"the table has two columns {twice[0]}", where=where, fix="remove one")


def _row(cells: dict[str, str], found: int, columns: int, place: str) -> Row:
    if found != columns:
        raise OctavoError(f"the row has {found} fields and the header {columns}", where=place, expected="as many")
    said = {name: cells.get(name, "").strip() for name in COLUMNS}
    for name in REQUIRED:
        if not said[name]:
            raise OctavoError(
                f"the row has no {name}", where=f"{place}, column {name}",
                expected="a name" if name == "architecture" else "a number above 0",
                fix="leave out runs that were not trained to their end",
            )  # fmt: skip
    name = said.pop("architecture")
    if len(name) > 100 or not name.isprintable():
        raise OctavoError(
            f"{shown(name)} is no name", where=f"{place}, column architecture", expected="at most 100 characters"
        )
    seed = said.pop("seed")
    if seed and not (seed.isdecimal() and len(seed) <= 15):
        raise OctavoError(
            f"{shown(seed)} is no seed", where=f"{place}, column seed", expected="a whole number, or nothing"
        )
    values = {column: _number(text, f"{place}, column {column}") for column, text in said.items() if text}
    return Row(architecture=name, seed=int(seed) if seed else None, **values)


def _number(text: str, place: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 1e-30 < value < 1e60:
        raise OctavoError(f"{shown(text)} is no number above 0", where=place, expected="a number such as 1.2e19")
    return value


def _order(row: Row) -> tuple[float, ...]:
    """FLOPs first, then all else: the same rows in any order give the same rungs."""
    return tuple(
        -1.0 if (value := getattr(row, name)) is None else float(value)
        for name in ("flops", "active_parameters", "tokens", "validation_loss", "seed")
    )


def _alike(one: Row, other: Row) -> bool:
    for name in ("flops", "active_parameters", "tokens"):
        a, b = getattr(one, name), getattr(other, name)
        if (a is None) != (b is None) or (a is not None and abs(math.log(a / b)) > SAME_RUNG):
            return False
    return True
