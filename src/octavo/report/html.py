"""The report as one self-contained HTML page: the PDF's content and the same figures, nothing fetched, nothing sent.

Jinja2 escapes every text. Figures stand in the page as SVG, wide and narrow, of which the style sheet shows one; their
marks carry their numbers, and each figure's numbers stand below it as a table.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import jinja2
from markupsafe import Markup

from octavo.files import write_text
from octavo.layout import TEMPLATES
from octavo.report.charts import Bars, Chart, Curves, Fits, Heat, Intervals, mean_and_spread
from octavo.report.document import Document, Picture, Table
from octavo.report.inline import as_one_page, inline, numbers_once
from octavo.report.paint import SINGLE, Styles, matrices
from octavo.report.style import number


def write_html(
    document: Document, charts: Mapping[str, Chart], styles: Styles, path: Path, processes: int | None = None
) -> None:
    """Write the page to `path`, with so many processes that draw; None: one for each core."""
    pictures = [block for section in document.sections for block in section.blocks if isinstance(block, Picture)]
    with ProcessPoolExecutor(processes or len(os.sched_getaffinity(0))) as pool:  # drawing is most of the work
        drawn = [
            pool.submit(inline, charts[picture.name], styles, picture.alternative, narrow=narrow)
            for picture in pictures
            for narrow in (False, True)
        ]
        roots = [one.result() for one in drawn]
    said = numbers_once(roots)
    svgs, sheet = as_one_page(roots)
    frames = [charts[picture.name].frame for picture in pictures]
    shown = {name for frame in frames if "series" in frame for name in frame["series"]}
    script = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    page = environment.get_template("report.html.j2").render(
        document=document,
        drawn={picture.name: svgs[2 * at : 2 * at + 2] for at, picture in enumerate(pictures)},
        numbers={picture.name: numbers(charts[picture.name], styles) for picture in pictures},
        cells=[styles[name] for name in styles if name in shown],
        said=Markup(json.dumps(said, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")),
        script=Markup(script),
        style=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")) + sheet,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    write_text(path, page)


def numbers(chart: Chart, styles: Styles) -> Table:
    """What a chart shows as a table: estimates and intervals, bars, a matrix, the last point of each curve."""
    frame = chart.frame
    match chart:
        case Intervals():
            own = frame[~frame["role"].isin(SINGLE)]
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
        case Fits():
            rows = [
                [chart.panels[row["panel"]][1].label, chart.series[row["series"]].label, row["role"], f"{row['x']:.3g}",
                 *(number(row[name], 4) for name in ("y", "low", "high"))]
                for row in frame[frame["role"] != "fit"].to_dict("records")
            ]  # fmt: skip
            return Table(["axis", "what", "", "at", "value", "low", "high"], rows, "lllrrrr")
        case Heat():
            columns = list(dict.fromkeys(map(str, frame["column"])))
            rows = [
                [panel, str(row), *(number(value) for value in values)]
                for panel, matrix in matrices(chart)
                for row, values in zip(matrix.index, matrix.to_numpy(), strict=True)
            ]
            return Table(["panel", chart.rows.label, *columns], rows, "ll" + "r" * len(columns))
