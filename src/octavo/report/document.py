"""The report's content as data: sections of paragraphs, tables and figures, the same for PDF and HTML.

Nothing here is markup. Renderers (`octavo.report.pdf`, `octavo.report.html`) set every string as text, so that a name
from a configuration file or an import cannot become Typst or HTML.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Text:
    """A paragraph. `lead`: an answer, set larger; `note`: a caveat, set apart."""

    text: str
    style: Literal["plain", "lead", "note"] = "plain"
    keys: Sequence[str] = ()
    """The keys of its numbers, in order, as `octavo trace` takes them."""
    kind: Literal["text"] = "text"


@dataclass(frozen=True)
class Table:
    """A table of texts; every page repeats the header. `align` has an `l` or `r` for each column."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    align: str
    caption: str = ""
    widths: Sequence[float] | None = None
    """Relative column widths; None: as wide as their texts."""
    small: bool = False
    keys: Sequence[Sequence[str]] | None = None
    """Of each row, the keys of its entries as `octavo trace` takes them; empty where an entry has none."""
    kind: Literal["table"] = "table"


@dataclass(frozen=True)
class Picture:
    """A figure of `figures/` by name, with its caption and what it shows in words (for readers that cannot see it)."""

    name: str
    caption: str
    alternative: str
    kind: Literal["figure"] = "figure"


Block = Text | Table | Picture


@dataclass(frozen=True)
class Section:
    """A question and what answers it. `page`: it begins on a page of its own."""

    title: str
    blocks: Sequence[Block]
    page: bool = False


@dataclass(frozen=True)
class Document:
    """A whole report."""

    title: str
    subtitle: str
    date: tuple[int, int, int, int, int, int]
    """Year to second, UTC, when the last attempt ended: made again from the same runs, a report has the same date."""
    language: str = "en"
    trace: str = ""
    """The command that follows a number, but for the number's key."""
    sections: Sequence[Section] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Plain data for the renderers."""
        return asdict(self)
