"""Forty cells of five seeds in the report: figures page themselves, nothing is cut off or left out, HTML is small."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from pypdf import PdfReader

from octavo.report.charts import MOST_SERIES, Bars, Chart, ChartAxis, Curves, Heat, Intervals, pages
from octavo.report.document import Document, Picture, ReportSection
from octavo.report.html import write_html
from octavo.report.paint import LINE_POINTS, STYLE, TALLEST, paint, save
from octavo.report.pdf import write_pdf
from octavo.report.style import CellStyle, cell_styles

ARCHITECTURES = ("dense", "moe", "fine", "coarse", "deep", "wide", "tall", "slim")
PRECISIONS = ("bf16", "fp8_delayed", "fp8_tensorwise", "fp8_blockwise", "fp8_mxfp8")
CELLS = [f"{architecture}-{precision}" for architecture in ARCHITECTURES for precision in PRECISIONS]
SEEDS, POINTS = 5, 400


@pytest.fixture(autouse=True)
def _on_paper() -> Iterator[None]:
    with plt.rc_context(STYLE):
        yield
    plt.close("all")


@pytest.fixture(scope="module")
def styles() -> dict[str, CellStyle]:
    columns = ("cell", "architecture", "precision", "ablation", "emulated")
    rows = [(cell, *cell.split("-"), None, not cell.endswith("bf16")) for cell in CELLS]
    return cell_styles(pd.DataFrame(rows, columns=columns))


@pytest.fixture(scope="module")
def charts(styles: dict[str, CellStyle]) -> dict[str, Chart]:
    panels = {"tokens": ChartAxis("tokens", log=True, engineering=True), "time": ChartAxis("CPU-hours", log=True)}
    step = np.arange(1, POINTS + 1)
    curves = pd.concat(
        pd.DataFrame({"panel": panel, "series": cell, "seed": seed, "x": 1024.0 * step,
                      "y": 5 - place / 40 - np.log(step) / 4 + seed / 100})
        for panel in panels
        for place, cell in enumerate(CELLS)
        for seed in range(SEEDS)
    )  # fmt: skip
    roles = [*["seed"] * SEEDS, "estimate"]
    dots = pd.concat(
        pd.DataFrame({"panel": "need", "row": row, "series": cell, "value": 1 + np.arange(SEEDS + 1) / 9,
                      "low": 0.9, "high": 1.8 + place / 40, "role": roles})
        for row in ("tokens", "model FLOPs", "CPU-hours", "money")
        for place, cell in enumerate(CELLS)
    )  # fmt: skip
    named = dots[dots["row"] == "tokens"].assign(row=[styles[cell].label for cell in CELLS for _ in roles])
    bars = pd.DataFrame(
        [
            {"panel": panel, "series": cell, "part": part, "value": 1.0 + place}
            for panel in ("time", "cost")
            for place, cell in enumerate(CELLS)
            for part in ("final runs", "lost, repeated and superseded work")
        ]
    )
    loads = pd.DataFrame(
        [
            {"panel": styles[cell].label, "row": layer, "column": rank, "value": 1 + place / 40 - rank / 16}
            for place, cell in enumerate(CELLS)
            for layer in range(1, 61)
            for rank in range(8)
        ]
    )
    axis = {"need": ChartAxis("a mixture's need for the same loss (dense: 1)", log=True)}
    made: tuple[Chart, ...] = (
        Curves("loss", curves, panels, ChartAxis("validation loss (nats per token)")),
        Intervals("needs", dots, axis, [list(dict.fromkeys(dots["row"]))], zero={"need": 1.0}, alone=True),
        Intervals("final_loss", named, axis, [list(dict.fromkeys(named["row"]))]),
        Bars("ledger", bars, {"time": ChartAxis("CPU-hours"), "cost": ChartAxis("cost (USD)")},
             ("final runs", "lost, repeated and superseded work")),
        Heat("load", loads, list(dict.fromkeys(loads["panel"])), ChartAxis("layer"), ChartAxis("expert"),
             ChartAxis("load"), middle=1.0),
    )  # fmt: skip
    return {chart.name: chart for chart in made}


NAMES = ("loss", "needs", "final_loss", "ledger", "load")


@pytest.mark.parametrize("name", NAMES)
def test_pages_hold_everything_once(name: str, charts: dict[str, Chart]) -> None:
    made = pages(charts[name])
    assert len(made) > 1
    assert [page.name for page in made] == [name, *(f"{name}-{place}" for place in range(2, len(made) + 1))]
    frame, again = charts[name].frame, pd.concat([page.frame for page in made])
    columns = list(frame.columns)
    pd.testing.assert_frame_equal(
        again.sort_values(columns, ignore_index=True), frame.sort_values(columns, ignore_index=True)
    )


def test_a_figure_that_fits_stays_as_it_is(charts: dict[str, Chart]) -> None:
    few = pages(charts["loss"])[0]
    assert pages(few) == [few]


@pytest.mark.parametrize("name", ["loss", "needs"])
def test_marks_of_one_page_are_told_apart(name: str, charts: dict[str, Chart], styles: dict[str, CellStyle]) -> None:
    for page in pages(charts[name]):
        series = page.frame["series"].unique()
        assert len(series) <= MOST_SERIES
        for one, other in itertools.combinations([styles[cell] for cell in series], 2):
            assert (one.colour, one.dash, one.marker) != (other.colour, other.dash, other.marker)


def test_all_cells_have_different_styles(styles: dict[str, CellStyle]) -> None:
    assert len({(style.colour, style.dash, style.marker) for style in styles.values()}) == len(CELLS)


@pytest.mark.parametrize("name", NAMES)
def test_a_page_is_as_high_as_paper_and_nothing_is_cut_off(
    name: str, charts: dict[str, Chart], styles: dict[str, CellStyle]
) -> None:
    for page in (pages(charts[name])[0], pages(charts[name])[-1]):
        figure = paint(page, styles).figure
        assert figure.get_figheight() <= TALLEST + 0.5
        figure.canvas.draw()
        drawn = figure.get_tightbbox()
        assert min(drawn.x0, drawn.y0) > -0.05
        assert drawn.x1 < figure.get_figwidth() + 0.05
        assert drawn.y1 < figure.get_figheight() + 0.05
        titles = [ax.title.get_window_extent() for ax in figure.axes if ax.get_title()]
        assert all(left.x1 < right.x0 for left, right in itertools.pairwise(titles))


@pytest.mark.parametrize("name", NAMES[:-1])
def test_pages_share_their_scales(name: str, charts: dict[str, Chart], styles: dict[str, CellStyle]) -> None:
    limits = [[ax.get_xlim() for ax in paint(page, styles).figure.axes] for page in pages(charts[name])]
    for other in limits[1:]:
        np.testing.assert_allclose(other, limits[0], rtol=0.05)


def test_lines_are_thinned_with_both_ends(charts: dict[str, Chart], styles: dict[str, CellStyle]) -> None:
    line = paint(pages(charts["loss"])[0], styles).figure.axes[0].lines[0]
    drawn = np.asarray(line.get_xdata(), dtype=float)
    assert len(drawn) == LINE_POINTS // (2 * len(CELLS)) < POINTS
    assert (drawn[0], drawn[-1]) == (1024.0, 1024.0 * POINTS)


def test_the_reports_hold_every_page(charts: dict[str, Chart], styles: dict[str, CellStyle], tmp_path: Path) -> None:
    kept = [charts[name] for name in ("loss", "ledger")]
    paged = {chart.name: pages(chart) for chart in kept}
    drawn = {page.name: page for one in paged.values() for page in one}
    pictures = [Picture(chart.name, f"Caption of {chart.name}.", f"What {chart.name} shows.") for chart in kept]
    document = Document("Many", "", (2026, 1, 2, 3, 4, 5), sections=[ReportSection("Figures", pictures)])
    whole = document.paged({name: [page.name for page in one] for name, one in paged.items()})
    write_html(whole, drawn, styles, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert all(f'id="figure-{name}"' in page for name in drawn)
    assert all(f'data-cell="{cell}"' in page for cell in CELLS)
    for one in drawn.values():
        save(one, styles, tmp_path)
    write_pdf(whole, tmp_path, tmp_path / "report.pdf")
    said = " ".join(one.extract_text() for one in PdfReader(tmp_path / "report.pdf").pages)
    assert "Caption of loss. Part 1 of 5" in " ".join(said.split())
    assert "Part 5 of 5" in said
    assert "Part 2 of 2" in said
