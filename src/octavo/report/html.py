"""The report as one self-contained HTML page: the PDF's content with interactive figures, no network needed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from octavo.files import write_text
from octavo.report.charts import Chart
from octavo.report.document import Block, Document, Picture, Table, Text
from octavo.report.style import CellStyle

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 68rem; margin: 2rem auto; padding: 0 1.2rem; }
h1 { margin-bottom: 0; } .subtitle { color: #666; margin-top: .2rem; }
h2 { margin-top: 2.6rem; border-bottom: 1px solid #ccc; }
nav ol { columns: 2; font-size: .9rem; } .lead { font-size: 1.1rem; }
.note { border-left: 3px solid #666; padding-left: .8rem; font-size: .9rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .82rem; width: 100%; }
th { text-align: left; border-bottom: 1.5px solid #222; vertical-align: bottom; }
th, td { padding: .25rem .45rem; } td { border-bottom: 1px solid #ddd; vertical-align: top; }
.right { text-align: right; font-variant-numeric: tabular-nums; }
figure { margin: 1.2rem 0; } figcaption, caption { color: #666; font-size: .82rem; text-align: left; }
caption { caption-side: bottom; padding-top: .4rem; }
.supported { color: #00664a; font-weight: bold; } .refuted { color: #a33c00; font-weight: bold; }
"""
DRAW = """
document.querySelectorAll("script[type='application/json']").forEach(data => {
  const figure = JSON.parse(data.textContent);
  Plotly.newPlot(data.dataset.target, figure.data, figure.layout, {responsive: true, displaylogo: false});
});
"""
ALIGN = {"l": "left", "r": "right"}
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"


def write_html(document: Document, charts: Mapping[str, Chart], styles: Mapping[str, CellStyle], path: Path) -> None:
    """Write the page to `path`."""
    from plotly.offline import get_plotlyjs

    contents = "".join(
        f'<li><a href="#section-{number}">{escape(section.title)}</a></li>'
        for number, section in enumerate(document.sections)
    )
    sections = "".join(
        f'<section id="section-{number}"><h2>{escape(section.title)}</h2>'
        + "".join(_block(block, charts, styles) for block in section.blocks)
        + "</section>"
        for number, section in enumerate(document.sections)
    )
    write_text(
        path,
        f'<!DOCTYPE html><html lang="{escape(document.language)}"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(document.title)}</title><style>{STYLE}</style></head><body>"
        f'<h1>{escape(document.title)}</h1><p class="subtitle">{escape(document.subtitle)}</p>'
        f"<nav><ol>{contents}</ol></nav><main>{sections}</main>"
        f"<script>{get_plotlyjs()}</script><script>{DRAW}</script></body></html>\n",
    )


def _block(block: Block, charts: Mapping[str, Chart], styles: Mapping[str, CellStyle]) -> str:
    match block:
        case Text():
            return f'<p class="{block.style}"{_title(block.keys)}>{escape(block.text)}</p>'
        case Table():
            return _table(block)
        case Picture():
            return _figure(block, charts[block.name], styles)


def _table(table: Table) -> str:
    header = "".join(
        f'<th scope="col" class="{ALIGN[align]}">{escape(name)}</th>'
        for name, align in zip(table.header, table.align, strict=True)
    )
    keys = table.keys or [[""] * len(table.align)] * len(table.rows)
    body = "".join(
        "<tr>" + "".join(_cell(*entry) for entry in zip(row, table.align, of_row, strict=True)) + "</tr>"
        for row, of_row in zip(table.rows, keys, strict=True)
    )
    return (
        f'<div class="wide"><table><caption>{escape(table.caption)}</caption>'
        f"<thead><tr>{header}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cell(value: str, align: str, key: str) -> str:
    verdict = value if value in ("supported", "refuted") else ""
    return f'<td class="{ALIGN[align]} {verdict}"{_title([key] if key else [])}>{escape(value)}</td>'


def _title(keys: Sequence[str]) -> str:
    """Shown where the pointer rests: the keys that `octavo trace` takes."""
    return f' title="{escape(" ".join(keys))}"' if keys else ""


def _figure(picture: Picture, chart: Chart, styles: Mapping[str, CellStyle]) -> str:
    from octavo.report.interactive import plot

    figure = json.loads(plot(chart, styles).to_json())
    data = json.dumps(figure, sort_keys=True).replace("<", "\\u003c")  # no string can close the script element
    target = f"figure-{picture.name}"
    return (
        f'<figure><div id="{target}" role="img" aria-label="{escape(picture.alternative)}"></div>'
        f'<script type="application/json" data-target="{target}">{data}</script>'
        f"<figcaption>{escape(picture.caption)}</figcaption></figure>"
    )
