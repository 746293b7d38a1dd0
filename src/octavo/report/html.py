"""The report as one self-contained HTML page: the PDF's content and the same figures, nothing fetched, nothing sent.

Jinja2 escapes every text. Figures stand in the page as SVG, wide and narrow, of which the style sheet shows one; their
marks carry their numbers, and each figure's numbers stand below it as a table.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from io import StringIO
from pathlib import Path
from xml.etree import ElementTree

import jinja2
import matplotlib.pyplot as plt
from markupsafe import Markup

from octavo.files import write_text
from octavo.layout import TEMPLATES
from octavo.report.charts import Bars, Chart, Curves, Heat, Intervals, mean_and_spread
from octavo.report.document import Document, Picture, Table
from octavo.report.paint import FAINT, INK, PAPER, RULE, STYLE, Styles, matrices, paint
from octavo.report.style import number

SVG = "http://www.w3.org/2000/svg"
LINK = "{http://www.w3.org/1999/xlink}href"
OF_PAGE = {INK: "var(--ink)", FAINT: "var(--faint)", RULE: "var(--rule)", PAPER: "var(--paper)"}
"""Colours that follow the page's light or dark scheme."""
IDENTIFIER = re.compile(r"(?<=#)[\w-]+")


def write_html(document: Document, charts: Mapping[str, Chart], styles: Styles, path: Path) -> None:
    """Write the page to `path`."""
    pictures = [block for section in document.sections for block in section.blocks if isinstance(block, Picture)]
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:  # drawing is most of the work
        drawn = {
            picture.name: [
                pool.submit(inline, charts[picture.name], styles, picture.alternative, narrow=narrow)
                for narrow in (False, True)
            ]
            for picture in pictures
        }
        svgs = {name: [one.result() for one in both] for name, both in drawn.items()}
    frames = [charts[picture.name].frame for picture in pictures]
    shown = {name for frame in frames if "series" in frame for name in frame["series"]}
    script = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    page = environment.get_template("report.html.j2").render(
        document=document,
        drawn=svgs,
        numbers={picture.name: numbers(charts[picture.name], styles) for picture in pictures},
        cells=[styles[name] for name in styles if name in shown],
        script=Markup(script),
        style=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    write_text(path, page)


def inline(chart: Chart, styles: Styles, alternative: str, *, narrow: bool) -> Markup:
    """A chart as an SVG element: texts are texts, colours are the page's, and marks carry cell and number."""
    with plt.rc_context({**STYLE, "svg.fonttype": "none"}):
        drawing = paint(chart, styles, narrow=narrow)
        file = StringIO()
        drawing.figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
        plt.close(drawing.figure)
    ElementTree.register_namespace("", SVG)
    root = ElementTree.fromstring(file.getvalue())
    for metadata in root.findall(f"{{{SVG}}}metadata"):
        root.remove(metadata)
    prefix = f"{chart.name}{'-narrow' if narrow else ''}-"
    for element in root.iter():
        identifier = element.attrib.pop("id", None)
        if identifier in drawing.marks:
            cell, texts = drawing.marks[identifier]
            if cell:
                element.set("data-cell", cell)
            if texts:
                shapes = [*element.iter(f"{{{SVG}}}use")] or [*element.iter(f"{{{SVG}}}path")]
                for shape, text in zip(shapes, texts, strict=True):
                    shape.set("data-number", text)
        elif identifier:
            element.set("id", prefix + identifier)
        if target := element.attrib.pop(LINK, None):
            element.set("href", f"#{prefix}{target[1:]}" if target.startswith("#") else target)
        for name, value in element.attrib.items():
            if "url(#" in value:
                element.set(name, IDENTIFIER.sub(prefix + r"\g<0>", value))
            elif name in ("style", "fill", "stroke"):
                element.set(name, _of_page(value))
    del root.attrib["width"], root.attrib["height"]
    root.attrib |= {"class": "narrow" if narrow else "wide", "role": "img", "aria-label": alternative}
    return Markup(ElementTree.tostring(root, encoding="unicode", short_empty_elements=True))


def _of_page(value: str) -> str:
    for colour, variable in OF_PAGE.items():
        value = value.replace(colour, variable)
    return value


def numbers(chart: Chart, styles: Styles) -> Table:
    """What a chart shows as a table: estimates and intervals, bars, a matrix, the last point of each curve."""
    frame = chart.frame
    match chart:
        case Intervals():
            own = frame[frame["role"] != "seed"]
            rows = [
                [chart.panels[row["panel"]].label, row["row"],
                 *(number(row[name], 4) for name in ("value", "low", "high"))]
                for row in own.to_dict("records")
            ]  # fmt: skip
            return Table(["axis", "what", "value", "low", "high"], rows, "llrrr")
        case Curves():
            ends = [
                (panel, name, mean_and_spread(own).iloc[-1])
                for (panel, name), own in frame.groupby(["panel", "series"], sort=False)
            ]
            rows = [
                [chart.titles.get(panel) or chart.panels[panel].label, styles[name].label, number(end["x", "mean"], 4),
                 *(number(end["y", which], 4) for which in ("mean", "min", "max"))]
                for panel, name, end in ends
            ]  # fmt: skip
            return Table(["panel", "cell", "last point", "mean", "lowest seed", "highest seed"], rows, "llrrrr")
        case Bars():
            rows = [
                [chart.panels[row["panel"]].label, styles[row["series"]].label, row["part"], number(row["value"], 4)]
                for row in frame.to_dict("records")
            ]
            return Table(["axis", "cell", "part", "value"], rows, "lllr")
        case Heat():
            columns = list(dict.fromkeys(map(str, frame["column"])))
            rows = [
                [panel, str(row), *(number(value) for value in values)]
                for panel, matrix in matrices(chart)
                for row, values in zip(matrix.index, matrix.to_numpy(), strict=True)
            ]
            return Table(["panel", chart.rows.label, *columns], rows, "ll" + "r" * len(columns))
