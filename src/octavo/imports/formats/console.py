"""Lines of console logs, and the numbers in them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from octavo.errors import OctavoError
from octavo.imports.points import Point

NUMBER = r"[-+]?(?:\d[\d,]*\.?\d*(?:[eE][-+]?\d+)?|nan|inf)"
LONGEST = 1 << 20
"""Characters of a line; what is longer is no line of a log."""

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_INSTANT = re.compile(r"\b(\d{4}-\d\d-\d\d)[ T](\d\d:\d\d:\d\d)(?:[.,](\d{1,6}))?")


def lines(path: Path) -> Iterator[tuple[str, str]]:
    """(`file:line`, line) of a text file, without colours. Raises OctavoError for a line longer than LONGEST."""
    with path.open(encoding="utf-8-sig", errors="replace", newline="\n") as file:
        number = 0
        while line := file.readline(LONGEST + 1):
            number += 1
            if len(line) > LONGEST:
                raise OctavoError(
                    f"line {number} is longer than {LONGEST:,} characters",
                    where=f"{path}:{number}", expected="a log, line by line", fix="check that this is the log",
                )  # fmt: skip
            yield f"{path}:{number}", _COLOUR.sub("", line.replace("\r\n", "\n"))


def read_lines(path: Path, read: Callable[[str, str], Point | None]) -> Iterator[Point]:
    """The point that `read(line, place)` finds in each line. Raises OctavoError that names the line it cannot read."""
    for place, line in lines(path):
        try:
            point = read(line, place)
        except (ValueError, OverflowError) as error:
            raise damaged(place, error) from None
        if point is not None:
            yield point


def damaged(place: str, error: Exception) -> OctavoError:
    """The error for one line."""
    said = str(error)
    return OctavoError(
        f"line {place.rpartition(':')[2]} is damaged: {said if len(said) <= 200 else said[:200] + ' ...'}",
        where=place, expected="one record with whole numbers and units", fix="mend the line or remove it",
    )  # fmt: skip


def number(text: str) -> float:
    """A number as logs write it: `7,512`, `9.1E+00`, `nan`. Raises ValueError."""
    return float(text.strip().replace(",", ""))


def one_record(found: int, what: str) -> None:
    """Raise ValueError where a line holds several records: programs wrote at the same time, or newlines were lost."""
    if found > 1:
        raise ValueError(f"it holds {found} records ({what}); lines must hold one each")


def clock(line: str) -> float | None:
    """The instant that a line begins with, in seconds; None where it has none. Its time zone is not known."""
    found = _INSTANT.search(line[:200])
    if found is None:
        return None
    try:
        instant = datetime.fromisoformat(f"{found[1]}T{found[2]}").replace(tzinfo=UTC)
    except ValueError:
        return None
    return instant.timestamp() + float(f"0.{found[3] or 0}")
