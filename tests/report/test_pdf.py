"""The PDF: archival, accessible, the same bytes every time, and every string set as text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from pypdf import PdfReader

from octavo.errors import OctavoError
from octavo.report.document import Document, Picture, ReportSection
from octavo.report.pdf import write_pdf


@pytest.fixture(scope="module")
def pdf(content: Document, figures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pdf") / "report.pdf"
    write_pdf(content, figures, path)
    return path


def test_made_twice_the_bytes_are_the_same(pdf: Path, content: Document, figures: Path, tmp_path: Path) -> None:
    write_pdf(content, figures, tmp_path / "again.pdf")
    assert (tmp_path / "again.pdf").read_bytes() == pdf.read_bytes()


def test_its_date_is_that_of_the_runs(pdf: Path) -> None:
    metadata = PdfReader(pdf).metadata
    assert metadata is not None
    assert metadata.title == "Octavo: small"
    assert metadata.creation_date is not None
    assert metadata.creation_date.isoformat()[:19] == "2026-01-02T03:04:05"


def test_it_is_archival_and_accessible(pdf: Path) -> None:
    reader = PdfReader(pdf)
    xmp = reader.xmp_metadata
    assert xmp is not None
    raw = xmp.stream.get_data().decode()
    assert "<pdfaid:part>2</pdfaid:part>" in raw
    assert "<pdfaid:conformance>A</pdfaid:conformance>" in raw
    assert "<pdfuaid:part>1</pdfuaid:part>" in raw
    assert reader.root_object.raw_get("/MarkInfo")["/Marked"]  # type: ignore[index]  # tagged: headings, tables, figures


def test_text_that_looks_like_markup_is_text(pdf: Path) -> None:
    first = " ".join(PdfReader(pdf).pages[0].extract_text().split())
    assert '#panic("typst")' in first.replace("“", '"').replace("”", '"')
    assert "$x_1$" in first
    assert "*b*" in first
    assert "@ref" in first


def test_figures_and_tables_are_in_it(pdf: Path) -> None:
    pages = PdfReader(pdf).pages
    text = " ".join(page.extract_text() for page in pages)
    for name in ("loss", "final_loss", "ledger", "experts"):
        assert f"Caption of {name}." in text
    assert "supported" in text


def test_a_missing_figure_is_named(content: Document, figures: Path, tmp_path: Path) -> None:
    broken = replace(content, sections=[ReportSection("x", [Picture("absent", "c", "a")])])
    with pytest.raises(OctavoError, match="a figure is missing"):
        write_pdf(broken, figures, tmp_path / "report.pdf")
    assert not (tmp_path / "report.pdf").exists()
