"""The one exception that a user sees: what was found, where, what was expected, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


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
        return "\n".join([self.found, *(f"  {label + ':':<10}{text}" for label, text in rows if text)])


@contextmanager
def asked_by(place: Callable[..., str], *keys: str | int) -> Iterator[None]:
    """Errors inside name the key of a configuration file that asked for what went wrong: `place(*keys)`."""
    try:
        yield
    except OctavoError as error:
        error.asked_by = error.asked_by or place(*keys)
        raise
