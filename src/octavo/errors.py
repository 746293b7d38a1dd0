"""The one exception that a user sees: what was found, where, what was expected, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

LONGEST_LINE = 2000
"""Characters of a message's line; what is longer stands in the file that the message names."""
LONGEST_VALUE = 100


class OctavoError(Exception):
    """Bad input, a missing part, or a file that does not fit: printed as one message, never as a traceback.

    `found` says what is wrong, `where` the file, line and key, `expected` what would have been right,
    `fix` what the user can do, `asked_by` the key of a configuration file that asked for it, where that is not where
    it went wrong. Every process boundary (`octavo.cli.main`) turns it into exit status 1.
    """

    def __init__(
        self, found: str, *, where: str | Path | None = None, expected: str | None = None, fix: str | None = None
    ) -> None:
        super().__init__(found)
        self.found = found
        self.where = None if where is None else str(where)
        self.expected = expected
        self.fix = fix
        self.asked_by: str | None = None

    def __str__(self) -> str:
        rows = (
            ("where", self.where), ("asked by", self.asked_by), ("expected", self.expected), ("to do", self.fix),
        )  # fmt: skip
        return printable("\n".join([self.found, *(f"  {label + ':':<10}{text}" for label, text in rows if text)]))


def printable(text: str) -> str:
    """Text from anywhere as it may go to a terminal: long lines cut, control characters written out."""
    return "\n".join(_printable_line(line) for line in text.split("\n"))


def shown(value: object) -> str:
    """A value for a message, as Python writes it, in ASCII, and cut where it is long."""
    text = ascii(value[: LONGEST_VALUE + 1] if isinstance(value, str) else value)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}... (it goes on)"


def _printable_line(line: str) -> str:
    cut = line if len(line) <= LONGEST_LINE else f"{line[:LONGEST_LINE]}... ({len(line):,} characters)"
    return "".join(one if one.isprintable() or one == "\t" else ascii(one)[1:-1] for one in cut)


def no_such(what: str, name: object, known: Iterable[str], *, where: str | Path | None = None) -> OctavoError:
    """The error for a name that is none of those known."""
    return OctavoError(
        f"there is no {what} {name!r}", where=where, expected=f"one of {', '.join(known) or '(there is none)'}"
    )


@contextmanager
def asked_by(place: Callable[..., str], *keys: str | int) -> Iterator[None]:
    """Errors inside name the key of a configuration file that asked for what went wrong: `place(*keys)`."""
    try:
        yield
    except OctavoError as error:
        error.asked_by = error.asked_by or place(*keys)
        raise
