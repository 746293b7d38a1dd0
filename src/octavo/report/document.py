"""The report's content as data: sections of paragraphs, tables and figures, the same for PDF and HTML.

Nothing here is markup. Renderers (`octavo.report.pdf`, `octavo.report.html`) set every string as text, so that a name
from a configuration file or an import cannot become Typst or HTML.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from octavo.records import Verdict

SIGNS: dict[Verdict, str] = {"supported": "✓", "refuted": "✗", "inconclusive": "○", "not testable here": "–"}
"""What tells verdicts apart besides their words."""


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
    links: Sequence[str] | None = None
    """Of each row, the page that its first entry leads to in the browser; empty where it leads nowhere."""
    kind: Literal["table"] = "table"


@dataclass(frozen=True)
class Picture:
    """A figure of `figures/` by name, with its caption and what it shows in words (for readers that cannot see it)."""

    name: str
    caption: str
    alternative: str
    kind: Literal["figure"] = "figure"

    def paged(self, pages: Sequence[str]) -> list[Picture]:
        """One picture for each page of its figure, which say that there are several; itself where there is one."""
        if len(pages) == 1:
            return [self]
        first = replace(self, caption=f"{self.caption} Part 1 of {len(pages)}, on the same scales.")
        rest = [
            Picture(name, f"Part {place} of {len(pages)} of the same figure.", f"{self.alternative} Part {place}.")
            for place, name in enumerate(pages[1:], 2)
        ]
        return [first, *rest]


@dataclass(frozen=True)
class Tile:
    """A question of page one, its number, and the verdict as a word."""

    question: str
    value: str
    detail: str
    verdict: Verdict
    answer: str
    """The verdict in the question's words: `no: more`."""
    key: str = ""
    """Of its number, as `octavo trace` takes it."""

    @property
    def said(self) -> str:
        """The verdict with its sign, which survives print in grey."""
        return f"{SIGNS[self.verdict]} {self.answer}"


@dataclass(frozen=True)
class Tiles:
    """Questions side by side."""

    tiles: Sequence[Tile]
    kind: Literal["tiles"] = "tiles"


@dataclass(frozen=True)
class Strip:
    """The verdicts in short: those that were tested as tiles of a line, those that were not in one sentence."""

    tested: Sequence[Tile]
    untested: str = ""
    kind: Literal["strip"] = "strip"


Block = Text | Table | Picture | Tiles | Strip


@dataclass(frozen=True)
class ReportSection:
    """A question and what answers it."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Document:
    """A whole report."""

    title: str
    """What it is about: the running head, and the document's name."""
    subtitle: str
    date: tuple[int, int, int, int, int, int]
    """Year to second, UTC, when the last attempt ended: made again from the same runs, a report has the same date."""
    language: str = "en"
    finding: str = ""
    """What was found, in one sentence: the heading; empty: the title is."""
    trace: str = ""
    """The command that follows a number, but for the number's key."""
    sections: Sequence[ReportSection] = field(default_factory=list)

    def paged(self, pages: Mapping[str, Sequence[str]]) -> Document:
        """The document with a picture for each page of a figure; `pages`: figure -> the names of its pages."""

        def of(block: Block) -> Sequence[Block]:
            return block.paged(pages[block.name]) if isinstance(block, Picture) else [block]

        sections = [
            replace(section, blocks=[one for block in section.blocks for one in of(block)]) for section in self.sections
        ]
        return replace(self, sections=sections)

    def to_json(self) -> dict[str, Any]:
        """Plain data for the renderers."""
        return {**asdict(self), "signs": SIGNS}
