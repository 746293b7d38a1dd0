"""Figures on paper: three formats and their data, the same bytes every time, one colour per cell."""

from __future__ import annotations

import itertools
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_hex
from matplotlib.transforms import Bbox

from octavo.report.charts import Chart, ChartAxis, Curves, Heat, mean_and_spread
from octavo.report.paint import STYLE, paint, save, spread, svg
from octavo.report.style import CellStyle, cell_styles


def test_every_figure_has_three_formats_and_its_data(figures: Path, drawn: dict[str, Chart]) -> None:
    for name, chart in drawn.items():
        for suffix in ("pdf", "svg", "png"):
            assert (figures / f"{name}.{suffix}").stat().st_size > 1000
        data = pd.read_csv(figures / f"{name}.csv")
        pd.testing.assert_frame_equal(data, chart.frame.reset_index(drop=True), check_dtype=False)


def test_drawn_twice_the_bytes_are_the_same(
    figures: Path, drawn: dict[str, Chart], styles: dict[str, CellStyle], tmp_path: Path
) -> None:
    for chart in drawn.values():
        save(chart, styles, tmp_path)
    for path in figures.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2.2): what is left of a colour in grey."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_a_layout_that_differs_in_last_bits_is_the_same_svg(
    drawn: dict[str, Chart], styles: dict[str, CellStyle]
) -> None:
    figure = paint(drawn["loss"], styles).figure
    figure.canvas.draw()  # lays it out
    figure.set_layout_engine("none")
    before = svg(figure)
    for ax in figure.axes:
        ax.set_position(Bbox.from_bounds(*(value * (1 + 1e-13) for value in ax.get_position().bounds)))
    assert svg(figure) == before


def test_cells_are_told_apart_without_colour(styles: dict[str, CellStyle]) -> None:
    """Two cells differ in line style or marker even where they print in the same grey."""
    for one, other in itertools.combinations(styles.values(), 2):
        assert one.colour != other.colour
        assert (one.dash, one.marker) != (other.dash, other.marker)


@pytest.mark.parametrize("architecture", ["dense", "moe"])
def test_precisions_of_an_architecture_differ_in_grey(architecture: str, styles: dict[str, CellStyle]) -> None:
    first, second = (luminance(styles[f"{architecture}-{name}"].colour) for name in ("bf16", "fp8_blockwise"))
    assert abs(first - second) > 0.1


def test_ablations_are_told_apart_however_many_there_are() -> None:
    """Sixteen: four colours by four lines."""
    runs = pd.DataFrame(
        [
            {"cell": f"moe-bf16+{place}", "architecture": "moe", "precision": "bf16", "ablation": str(place),
             "emulated": False}
            for place in range(16)
        ]
    )  # fmt: skip
    assert len({(style.colour, style.dash) for style in cell_styles(runs).values()}) == 16


def test_a_matrix_gets_lighter_with_its_numbers(drawn: dict[str, Chart], styles: dict[str, CellStyle]) -> None:
    """Below and above the middle are told apart in grey."""
    colours = paint(drawn["experts"], styles).figure.axes[0].collections[0].get_cmap()
    assert colours is not None
    greys = [luminance(to_hex(colours(share / 20))) for share in range(21)]
    assert greys == sorted(greys)


def test_seeds_spread_in_what_they_spend_too() -> None:
    """Two seeds take 1 and 3 hours for the first loss, 2 and 4 for the second."""
    points = pd.DataFrame({"seed": [1, 1, 2, 2], "x": [1.0, 2.0, 3.0, 4.0], "y": [5.0, 4.0, 5.2, 4.2]})
    spread = mean_and_spread(points)
    assert spread["x"].to_numpy().tolist() == [[2.0, 1.0, 3.0], [3.0, 2.0, 4.0]]
    assert spread["y", "max"].tolist() == [5.2, 4.2]


def test_a_matrix_that_is_even_but_for_noise_has_one_colour(styles: dict[str, CellStyle]) -> None:
    """Loads of 1 ± 1e-6: the scale does not stretch them over its whole range."""
    rows = [{"panel": "layer", "row": 1, "column": place, "value": 1 + (-1) ** place * 1e-6} for place in range(4)]
    mesh = paint(Heat("even", pd.DataFrame(rows), ["layer"], ChartAxis(""), ChartAxis(""), ChartAxis(""), 1.0), styles)
    colours = {to_hex(one) for one in mesh.figure.axes[0].collections[0].to_rgba(np.array([1 - 1e-6, 1 + 1e-6]))}
    assert len(colours) <= 2  # neighbours of the map at most
    assert max(map(luminance, colours)) - min(map(luminance, colours)) < 0.01


@given(st.lists(st.tuples(st.floats(-2, 2), st.floats(0.01, 0.1)), min_size=1, max_size=10))
def test_boxes_are_spread_without_overlap_and_keep_their_order(boxes: list[tuple[float, float]]) -> None:
    wanted, heights = np.array(sorted(boxes)).T
    middles = spread(wanted, heights)
    tops, bottoms = middles + heights / 2, middles - heights / 2
    assert (bottoms[1:] >= tops[:-1] - 1e-9).all()
    assert bottoms[0] >= -1e-9
    assert tops[-1] <= 1 + 1e-9


def test_boxes_with_room_stay_where_they_are_wanted() -> None:
    """Two that are wanted at one height move apart by half of a box each, the third is out of their way."""
    assert spread(np.array([0.2, 0.2, 0.9]), np.full(3, 0.1)) == pytest.approx([0.15, 0.25, 0.9])


@pytest.mark.parametrize("ends", ["all at one height", "two by two", "apart"])
@pytest.mark.parametrize("count", [2, 5, 8])
def test_names_at_ends_of_lines_do_not_overlap(ends: str, count: int) -> None:
    """Nor do they leave the figure or their order, and each is joined to the end of its line."""
    names = [f"a-model-with-a-rather-long-name-{place}" for place in range(count)]
    runs = pd.DataFrame({"cell": names, "architecture": names, "precision": "fp8_blockwise", "ablation": None,
                         "emulated": True})  # fmt: skip
    heights = {"all at one height": np.ones(count), "two by two": np.arange(count) // 2, "apart": np.arange(count)}[
        ends
    ]
    frame = pd.DataFrame(
        [
            {"panel": panel, "series": name, "seed": 1, "x": 10.0 * step, "y": float(height)}
            for panel in ("tokens", "time")
            for name, height in zip(names, heights, strict=True)
            for step in (1, 2)
        ]
    )
    panels = {"tokens": ChartAxis("tokens", log=True), "time": ChartAxis("seconds", log=True)}
    figure = paint(Curves("ends", frame, panels, ChartAxis("loss (%)"), ends=True), cell_styles(runs)).figure
    figure.canvas.draw()
    ax = figure.axes[-1]
    boxes = [text.get_window_extent() for text in ax.texts]
    assert len(boxes) == count
    for one, other in itertools.pairwise(sorted(boxes, key=lambda box: box.y0)):
        assert one.y1 <= other.y0
    for box in boxes:
        assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= box.y0 < box.y1 <= figure.bbox.y1
    ended = ax.transData.transform(np.column_stack([np.full(count, 20.0), heights]))
    leaders = [line.get_window_extent() for line in ax.lines if line.get_linewidth() == 0.6]
    for leader in leaders:
        assert min(np.hypot(leader.x0 - x, min(abs(leader.y0 - y), abs(leader.y1 - y))) for x, y in ended) < 1
    assert len(leaders) == count


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize(
    "ends", [(75e3, 245e3), (6.2345, 31.234), (5.1234, 24.2), (0.0123, 0.21), (1.0, 1e6), (14.0, 24.0)]
)
def test_labels_of_a_logarithmic_axis_are_two_or_more_and_do_not_touch(ends: tuple[float, float], narrow: bool) -> None:
    frame = pd.DataFrame(
        [
            {"panel": panel, "series": "a", "seed": 0, "x": x, "y": y}
            for panel in "abc"
            for x, y in zip(ends, (4.0, 3.0), strict=True)
        ]
    )
    panels = {panel: ChartAxis(panel, log=True, engineering=ends[0] > 1e3) for panel in "abc"}
    styles = {"a": CellStyle("a", "A", "#000000", (), "o")}
    with plt.rc_context(STYLE):
        figure = paint(Curves("ticks", frame, panels, ChartAxis("loss")), styles, narrow=narrow).figure
        figure.canvas.draw()
        low, high = figure.axes[0].get_xlim()
        labels = [one for one in figure.axes[0].get_xticklabels() if low <= one.get_position()[0] <= high]
        boxes = [one.get_window_extent() for one in labels if one.get_text()]
        plt.close(figure)
    assert len(boxes) >= 2
    assert all(right.x0 - left.x1 > 2 for left, right in itertools.pairwise(boxes))
