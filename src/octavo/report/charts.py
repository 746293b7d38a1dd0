"""The five kinds of chart that the report has, as data: what is drawn, on which axes, in whose colour.

A chart knows nothing of how it is drawn. `octavo.report.paint` draws it, on paper and for the page, and its `frame` is
the CSV beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TypeVar

import numpy as np
import pandas as pd

from octavo.report.style import CellStyle

NO_CELL = ""
"""The series of what belongs to no cell."""
MOST_SERIES = 8
"""Lines, or marks of a row, that a figure has: more are not told apart, and their legend has no room."""
MOST_ROWS = 28
"""Rows of one mark, or bars, that are as high as a page."""
MOST_MATRICES = 4
"""Matrices side by side."""


@dataclass(frozen=True)
class ChartAxis:
    """An axis: its label (with the unit) and its scale."""

    label: str
    log: bool = False
    engineering: bool = False
    """Ticks as 10 k, 2 M."""


@dataclass(frozen=True)
class Curves:
    """Lines over a resource, one per series, with the spread over seeds as a band: from the lowest of what was measured
    and of what was spent for it to the highest.

    `frame` has columns panel, series, seed, x, y. Panels stand side by side and share the y axis if `shared`.
    """

    name: str
    frame: pd.DataFrame
    panels: Mapping[str, ChartAxis]
    """Panel -> its x axis, in order."""
    y: ChartAxis
    titles: Mapping[str, str] = field(default_factory=dict)
    shared: bool = True
    ends: bool = False
    """Lines are named where they end, in the last panel, in place of a legend (where there is room beside it)."""
    whole: pd.DataFrame | None = None
    """Of a page (`pages`): the frame of all pages, which share their scales."""


def mean_and_spread(points: pd.DataFrame) -> pd.DataFrame:
    """Of one series: mean, lowest and highest x and y over seeds, measurement by measurement.

    Seeds spend differently much (time) for the same step, so x is spread too.
    """
    place = points.groupby("seed").cumcount()
    return points.groupby(place)[["x", "y"]].agg(["mean", "min", "max"])


@dataclass(frozen=True)
class Intervals:
    """Estimates with their intervals, one row each, and the single seeds behind them where they are known.

    `frame` has columns panel, row, series, value, low, high, role (`estimate`, `emulated`: one that rests on emulated
    times, `seed`, `pair`: one of many whose median is the estimate). `zero` is where nothing differs, `sides` say what
    lies to its left and right; `band` is the margin of a claim. Rows of a block share their axes, which rows of another
    do not.
    """

    name: str
    frame: pd.DataFrame
    panels: Mapping[str, ChartAxis]
    blocks: Sequence[Sequence[str]]
    zero: Mapping[str, float] = field(default_factory=dict)
    band: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    sides: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    alone: bool = False
    """Each panel has its own rows alone, with the estimates written at its edge."""
    whole: pd.DataFrame | None = None
    """Of a page (`pages`): the frame of all pages, which share their scales."""

    @property
    def marks_of_a_row(self) -> int:
        """Series of the row that has most."""
        return max(1, int(self.frame.groupby(["panel", "row"])["series"].nunique().max()))

    @property
    def rows(self) -> list[str]:
        """All rows, from the top."""
        return [row for block in self.blocks for row in block]


@dataclass(frozen=True)
class Bars:
    """Horizontal bars, stacked by part. `frame` has columns panel, series, part, value."""

    name: str
    frame: pd.DataFrame
    panels: Mapping[str, ChartAxis]
    parts: Sequence[str]
    whole: pd.DataFrame | None = None
    """Of a page (`pages`): the frame of all pages, which share their scales."""


@dataclass(frozen=True)
class Heat:
    """Matrices of numbers. `frame` has columns panel, row, column, value; `middle` has the colour between.

    Colours run from dark to light, so that they can be told apart in grey.
    """

    name: str
    frame: pd.DataFrame
    panels: Sequence[str]
    rows: ChartAxis
    columns: ChartAxis
    value: ChartAxis
    middle: float | None = None
    whole: pd.DataFrame | None = None
    """Of a page (`pages`): the frame of all pages, which share their scales."""


@dataclass(frozen=True)
class Fits:
    """What was fitted as lines with their bands, what was measured as points, and what was foretold as open marks.

    `frame` has columns panel, series, role (`fit`, `measured`, `foretold`), x, y, low, high. Series are no cells: their
    names and colours are the chart's own.
    """

    name: str
    frame: pd.DataFrame
    panels: Mapping[str, tuple[ChartAxis, ChartAxis]]
    """Panel -> its x and y axis, in order."""
    series: Mapping[str, CellStyle]
    one: Mapping[str, float] = field(default_factory=dict)
    """Where on the y axis nothing differs."""


Chart = Curves | Intervals | Bars | Heat | Fits
Split = TypeVar("Split", Curves, Intervals, Bars, Heat)
"""A chart of which a part is a chart."""


def pages(chart: Chart) -> list[Chart]:
    """A chart as so many that each fits a page and its legend: itself where it does, and nothing is left out.

    The first keeps the chart's name, those behind it are `<name>-2` and so on.
    """
    match chart:
        case Curves():
            made = [_part(chart, "series", part) for part in _parts(chart.frame["series"], MOST_SERIES)]
        case Bars():
            made = [_part(chart, "series", part) for part in _parts(chart.frame["series"], MOST_ROWS)]
        case Intervals():
            made = list(_pages_of_rows(chart))
        case Heat():
            parts = _parts(pd.Series(chart.panels), MOST_MATRICES)
            made = [replace(_part(chart, "panel", part), panels=part) for part in parts]
        case Fits():
            made = [chart]
    if len(made) == 1:
        return [chart]
    return [
        replace(one, name=chart.name if place == 1 else f"{chart.name}-{place}", whole=chart.frame)
        for place, one in enumerate(made, 1)
    ]


def _pages_of_rows(chart: Intervals) -> Iterator[Intervals]:
    """Rows of several series are split by series first, then all by rows."""
    several = chart.marks_of_a_row > 1
    for series in _parts(chart.frame["series"], MOST_SERIES) if several else [chart.frame["series"].unique().tolist()]:
        one = _part(chart, "series", series)
        there = set(one.frame["row"])
        rows = [row for row in chart.rows if row in there]
        for part in _parts(pd.Series(rows), max(1, 2 * MOST_ROWS // (1 + one.marks_of_a_row))):
            page = _part(one, "row", part)
            blocks = [[row for row in block if row in part] for block in chart.blocks]
            panels = {name: axis for name, axis in chart.panels.items() if name in set(page.frame["panel"])}
            yield replace(page, blocks=[block for block in blocks if block], panels=panels)


def _part(chart: Split, column: str, values: Sequence[str]) -> Split:
    return replace(chart, frame=chart.frame[chart.frame[column].isin(values)])


def _parts(values: pd.Series, most: int) -> list[list[str]]:
    """The different values in their order, at most so many at a time, and about as many each time."""
    different = values.unique().tolist()
    cuts = np.linspace(0, len(different), -(-len(different) // most) + 1).round().astype(int)
    return [different[start:end] for start, end in pairwise(cuts)]
