"""The one exception that a user sees: what was found, where, what was expected, and what to do about it."""

from __future__ import annotations

from pathlib import Path


class OctavoError(Exception):
    """Bad input, a missing part, or a file that does not fit: printed as one message, never as a traceback.

    `found` says what is wrong, `where` the file, line and key, `expected` what would have been right,
    `fix` what the user can do. Every process boundary (`octavo.cli.main`) turns it into exit status 1.
    """

    def __init__(
        self, found: str, *, where: str | Path | None = None, expected: str | None = None, fix: str | None = None
    ) -> None:
        super().__init__(found)
        self.found = found
        self.where = None if where is None else str(where)
        self.expected = expected
        self.fix = fix

    def __str__(self) -> str:
        rows = (("where", self.where), ("expected", self.expected), ("to do", self.fix))
        return "\n".join([self.found, *(f"  {label + ':':<10}{text}" for label, text in rows if text)])
