"""The four kinds of chart that the report has, as data: what is drawn, on which axes, in whose colour.

A chart knows nothing of how it is drawn. `octavo.report.paint` draws it, on paper and for the page, and its `frame` is
the CSV beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd


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
    times, `seed`). `zero` is where nothing differs, `sides` say what lies to its left and right; `band` is the margin
    of a claim. Rows of a block share their axes, which rows of another do not.
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


Chart = Curves | Intervals | Bars | Heat
