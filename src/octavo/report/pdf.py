"""The report as PDF, typeset by Typst: PDF/A-2a (archival) and PDF/UA-1 (accessible), the same bytes every time."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

from octavo.errors import OctavoError
from octavo.files import atomic_path
from octavo.layout import TEMPLATES
from octavo.report.document import Document, Picture

TEMPLATE = TEMPLATES / "report.typ"


def write_pdf(document: Document, figures: Path, path: Path) -> None:
    """Typeset `document` with the SVGs of `figures` into `path`. Raises OctavoError when a figure is missing."""
    import typst

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copy(TEMPLATE, folder / "report.typ")
        (folder / "document.json").write_text(json.dumps(document.to_json(), ensure_ascii=False), encoding="utf-8")
        (folder / "figures").mkdir()
        for picture in (block for section in document.sections for block in section.blocks):
            if isinstance(picture, Picture):
                source = figures / f"{picture.name}.svg"
                if not source.exists():
                    raise OctavoError("a figure is missing", where=source, fix=f"make it: octavo figures {path.parent}")
                shutil.copy(source, folder / "figures" / source.name)
        try:
            content = typst.compile(
                folder / "report.typ", root=folder, ignore_system_fonts=True, pdf_standards=["a-2a", "ua-1"]
            )
        except typst.TypstError as error:
            raise OctavoError(f"Typst cannot typeset the report: {error}", where=TEMPLATE) from error
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
