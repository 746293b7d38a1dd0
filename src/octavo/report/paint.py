"""Charts drawn with matplotlib: on paper, and as SVG inside the page in a wide and a narrow version.

Files are PDF, SVG and PNG with their data as CSV, the same bytes every time. What belongs to a cell is marked, so that
the page can show a mark's number and switch a cell off.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import fill
from typing import Any

os.environ.setdefault("SOURCE_DATE_EPOCH", "0")  # matplotlib's PDF backend writes no time of making then

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from octavo.files import atomic_path
from octavo.report.charts import Bars, Chart, ChartAxis, Curves, Heat, Intervals, mean_and_spread
from octavo.report.style import CellStyle, number, percent

WIDTH = 7.0
"""Inches: the text width of an A4 page."""
NARROW = 3.6
"""Inches: text of 8 points is 11 pixels high where this fills a telephone of 375 pixels."""
INK, FAINT, RULE, PAPER = "#222222", "#666666", "#e5e5e5", "#ffffff"
"""Of texts and lines, of frames, of grids, of what lies below: the page puts its own in their place."""
HATCHES = ("", "////", "....", "xxxx")
FORMATS = ("pdf", "svg", "png")
LEAST_REACH = 0.1
"""Colours span no less on either side of the middle: where all is even, noise would look like a pattern."""
POINTS = 72
"""An inch."""

STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "legend.fontsize": 7.5,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "text.color": INK,
    "text.parse_math": False,
    "axes.labelcolor": INK,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "axes.edgecolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.4,
    "lines.markersize": 3.5,
    "hatch.linewidth": 0.5,
    "svg.hashsalt": "octavo",
    "svg.fonttype": "path",
    "pdf.fonttype": 42,
    "figure.constrained_layout.use": True,
}

Styles = Mapping[str, CellStyle]


@dataclass
class Drawing:
    """A chart drawn, with what its marks stand for."""

    narrow: bool = False
    figure: Figure = field(default_factory=Figure)
    marks: dict[str, tuple[str, Sequence[str]]] = field(default_factory=dict)
    """Identifier of an artist -> the cell that it shows (or none), and the number of each mark in it as text."""

    def mark(self, artist: Artist, cell: str, numbers: Sequence[str] = ()) -> None:
        """Say what an artist shows."""
        name = f"mark-{len(self.marks)}"
        artist.set_gid(name)
        self.marks[name] = (cell, numbers)

    def panels(self, count: int, height: float, *, share: bool = True) -> list[Axes]:
        """Axes side by side, or one below the other where it is narrow; `height` in inches."""
        shape = (count, 1) if self.narrow else (1, count)
        size = (NARROW, height * count) if self.narrow else (WIDTH, height)
        self.figure, axes = plt.subplots(*shape, figsize=size, sharey=share, squeeze=False, layout="constrained")
        return list(axes.flat)

    def axis(self, ax: Axes, which: str, axis: ChartAxis, *, label: bool = True) -> None:
        """Give an axis its label, scale and ticks."""
        text = fill(axis.label, 36) if self.narrow else axis.label
        getattr(ax, f"set_{which}label")(text if label else "")
        its = getattr(ax, f"{which}axis")
        if axis.log:
            getattr(ax, f"set_{which}scale")("log")
            low, high = its.get_view_interval()
            between = (2.0, 5.0) if high < 1e4 * low else ()  # over more decades labels would run into each other
            decades = LogLocator(subs=(1.0, *between), numticks=12)
            its.set_major_locator(decades if high > 4 * low else MaxNLocator(5))  # less has too few of these ticks
            its.set_minor_locator(NullLocator())
            its.set_minor_formatter(NullFormatter())
            its.set_major_formatter("{x:g}")
        if axis.engineering:
            its.set_major_formatter(EngFormatter(sep="\N{THIN SPACE}"))

    def legend(self, handles: Sequence[Any], labels: Sequence[str]) -> None:
        """A legend below, in as many columns as there is room for."""
        labels = [fill(label, 44 if self.narrow else 88) for label in labels]
        if labels:
            room = (
                POINTS
                * (NARROW if self.narrow else WIDTH)
                / (4.2 * max(len(line) for label in labels for line in label.split("\n")) + 36)
            )
            columns = min(len(labels), max(1, int(room)))
            self.figure.legend(
                handles, labels, loc="outside lower center", ncols=columns, frameon=False, handlelength=3
            )


def save(chart: Chart, styles: Styles, folder: Path) -> None:
    """Write a chart's PDF, SVG, PNG and CSV into `folder`."""
    save_as([folder / f"{chart.name}.{suffix}" for suffix in FORMATS], chart, styles)
    with atomic_path(folder / f"{chart.name}.csv") as temporary:
        chart.frame.to_csv(temporary, index=False, float_format="%.10g", lineterminator="\n")


def save_as(paths: Sequence[Path], chart: Chart, styles: Styles) -> None:
    """Write a chart to files, each in the format that its name ends in."""
    with plt.rc_context(STYLE):
        figure = paint(chart, styles).figure
        for path in paths:
            suffix = path.suffix[1:]
            metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {"Software": None}}[suffix]
            with atomic_path(path) as temporary:
                figure.savefig(temporary, format=suffix, dpi=200, metadata=metadata)
        plt.close(figure)


def paint(chart: Chart, styles: Styles, *, narrow: bool = False) -> Drawing:
    """Draw a chart."""
    drawing = Drawing(narrow)
    match chart:
        case Curves():
            _curves(drawing, chart, styles)
        case Intervals():
            _intervals(drawing, chart, styles)
        case Bars():
            _bars(drawing, chart, styles)
        case Heat():
            _heat(drawing, chart)
    return drawing


def _curves(drawing: Drawing, chart: Curves, styles: Styles) -> None:
    # panels of their own scales come several to a page
    axes = drawing.panels(
        len(chart.panels),
        1.5 if chart.ends and not drawing.narrow else 2.6 if chart.shared else 2.1,
        share=chart.shared,
    )
    shown = {name: style for name, style in styles.items() if name in set(chart.frame["series"])}
    for place, (ax, (panel, x)) in enumerate(zip(axes, chart.panels.items(), strict=True)):
        frame = chart.frame[chart.frame["panel"] == panel]
        for name, style in shown.items():
            own = frame[frame["series"] == name]
            if len(own):
                _line_with_band(drawing, ax, own, style)
        drawing.axis(ax, "x", x)
        drawing.axis(ax, "y", chart.y, label=place == 0 or drawing.narrow or not chart.shared)
        ax.set_title(chart.titles.get(panel, ""))
    if chart.ends and not drawing.narrow:
        _names_at_ends(axes[-1], chart.frame[chart.frame["panel"] == list(chart.panels)[-1]], shown)
    else:
        handles = [axes[0].plot([], [], **_line(style))[0] for style in shown.values()]
        drawing.legend(handles, [style.label for style in shown.values()])


def _names_at_ends(ax: Axes, frame: pd.DataFrame, styles: Styles) -> None:
    """Each line's name right of the panel at the height of its end, moved apart where they would overprint."""
    ends = {name: float(mean_and_spread(own)["y", "mean"].iloc[-1]) for name, own in frame.groupby("series")}
    low, high = ax.get_ylim()
    gap = (high - low) * 0.09
    at = -np.inf
    for name in sorted(ends, key=lambda one: ends[one]):
        at = max(ends[name], at + gap)
        label = fill(styles[name].label, 40)
        ax.text(1.02, at, label, transform=ax.get_yaxis_transform(), va="center", fontsize=7)
        ax.plot(1.0, at, transform=ax.get_yaxis_transform(), clip_on=False, **_line(styles[name]))


def _line(style: CellStyle) -> dict[str, Any]:
    return {"color": style.colour, "dashes": style.dash or (None, None), "marker": style.marker, "markeredgewidth": 0}


def _line_with_band(drawing: Drawing, ax: Axes, own: pd.DataFrame, style: CellStyle) -> None:
    """The mean over seeds, and a band from the lowest to the highest of them."""
    points = mean_and_spread(own)
    x, y = points["x"], points["y"]
    several = own["seed"].nunique() > 1
    (line,) = ax.plot(x["mean"], y["mean"], **_line(style))
    texts = []
    for at, mean, low, high in zip(x["mean"], y["mean"], y["min"], y["max"], strict=True):
        spread = f" (seeds {number(low, 4)} to {number(high, 4)})" if several else ""
        texts.append(f"{style.label}: {number(mean, 4)}{spread} at {number(at, 4)}")
    drawing.mark(line, style.cell, texts)
    if several:
        (band,) = ax.fill(
            [*x["min"], *x["max"][::-1]], [*y["min"], *y["max"][::-1]], color=style.colour, alpha=0.15, linewidth=0
        )
        drawing.mark(band, style.cell)


def _intervals(drawing: Drawing, chart: Intervals, styles: Styles) -> None:
    def rows_of(rows: Sequence[str], panel: str) -> list[str]:
        there = set(chart.frame.loc[chart.frame["panel"] == panel, "row"])
        return [row for row in rows if row in there or not chart.alone]

    series = [name for name in styles if name in set(chart.frame["series"])]
    per_row = max(1, int(chart.frame.groupby(["panel", "row"])["series"].nunique().max()))
    named = per_row == 1 and chart.frame.groupby("row")["series"].nunique().max() == 1  # rows name the series already
    labels = {row: fill(row, 24 if drawing.narrow else 44) for row in chart.rows}
    lines = 1 + max(label.count("\n") for label in labels.values())
    legend = 0.0 if named else 0.18 * -(-len(series) // (1 if drawing.narrow else 4))
    places = [(rows_of(rows, panel), panel) for rows in chart.blocks for panel in chart.panels]
    if drawing.narrow:
        places = [(rows_of(rows, panel), panel) for panel in chart.panels for rows in chart.blocks]
    across = 1 if drawing.narrow else len(chart.panels)
    each = max(0.1 + 0.12 * per_row, 0.14 * lines)
    heights = [
        0.45 + each * max(len(rows) for rows, _ in places[first : first + across])
        for first in range(0, len(places), across)
    ]
    drawing.figure, axes = plt.subplots(
        len(heights), across, sharey=False if chart.alone else "row", squeeze=False, layout="constrained",
        figsize=(NARROW if drawing.narrow else WIDTH, 0.25 + sum(heights) + legend), height_ratios=heights,
    )  # fmt: skip
    for ax, (rows, panel) in zip(axes.flat, places, strict=True):
        frame = chart.frame[(chart.frame["panel"] == panel) & chart.frame["row"].isin(rows)]
        if panel in chart.band:
            ax.axvspan(*chart.band[panel], color="#999999", alpha=0.18, linewidth=0, label="margin of the claim")
        if panel in chart.zero:
            ax.axvline(chart.zero[panel], color=INK, linewidth=0.8)
        there = [name for name in series if not chart.alone or name in set(frame["series"])]
        for place, name in enumerate(there):
            shift = 0.0 if per_row == 1 else (place - (len(there) - 1) / 2) * 0.7 / len(there)
            heights_of = {row: y + shift for y, row in enumerate(rows)}
            _dots(
                drawing,
                ax,
                frame[frame["series"] == name],
                heights_of,
                styles[name],
                written=chart.panels[panel] if chart.alone else None,
            )
        for side, (text, where) in enumerate(zip(chart.sides.get(panel, ()), ("right", "left"), strict=False)):
            ax.annotate(
                text, (chart.zero[panel], 1), xycoords=ax.get_xaxis_transform(), xytext=(8 * side - 4, 2),
                textcoords="offset points", ha=where, color=FAINT, fontsize=7,
            )  # fmt: skip
        drawing.axis(ax, "x", chart.panels[panel])
        ax.set_yticks(range(len(rows)), [labels[row] for row in rows])
        ax.set_ylim(len(rows) - 0.5, -0.5)
        ax.grid(axis="y", visible=False)
    if not named:
        handles = {
            label: handle for ax in axes.flat for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)
        }
        drawing.legend(list(handles.values()), list(handles))


def _dots(
    drawing: Drawing,
    ax: Axes,
    own: pd.DataFrame,
    heights: Mapping[str, float],
    style: CellStyle,
    *,
    written: ChartAxis | None,
) -> None:
    """One series' seeds (pale), intervals and estimates (hollow where emulated), each in one artist for all rows."""
    own = own.assign(y=own["row"].map(heights))
    seeds, estimates = own[own["role"] == "seed"], own[own["role"] != "seed"]
    (pale,) = ax.plot(seeds["value"], seeds["y"], marker=style.marker, color=style.colour, alpha=0.35, markersize=3,
                      linestyle="")  # fmt: skip
    singles = zip(seeds["row"], seeds["value"], strict=True)
    drawing.mark(pale, style.cell, [f"{row}, one seed: {number(value, 4)}" for row, value in singles])
    if estimates.empty:
        return
    known = estimates.dropna(subset="low").astype({"low": float, "high": float})
    bars = ax.hlines(known["y"], known["low"], known["high"], color=style.colour, linewidth=1.6)
    drawing.mark(bars, style.cell)
    solid = {"markerfacecolor": style.colour, "markeredgecolor": PAPER, "markeredgewidth": 0.6}
    hollow = {"markerfacecolor": PAPER, "markeredgecolor": style.colour, "markeredgewidth": 1.0}
    for role, look in (("estimate", solid), ("emulated", hollow)):
        part = estimates[estimates["role"] == role]
        label = style.label if role == "estimate" or set(estimates["role"]) == {role} else None
        if len(part):
            (dots,) = ax.plot(part["value"], part["y"], marker=style.marker, markersize=5, linestyle="", label=label,
                              **look)  # fmt: skip
            drawing.mark(dots, style.cell, [said(one) for one in part.to_dict("records")])
    for one in estimates.to_dict("records") if written else ():
        text = f"{one['value']:.2f}" if written and written.log else percent(one["value"])
        ax.text(1.02, one["y"], text, transform=ax.get_yaxis_transform(), va="center", fontsize=7)


def said(one: Mapping[Any, Any]) -> str:
    """A row of an `Intervals` chart as text."""
    text = f"{one['row']}: {number(one['value'], 4)}"
    return text if pd.isna(one["low"]) else f"{text}, 95 % interval {number(one['low'], 4)} to {number(one['high'], 4)}"


def _bars(drawing: Drawing, chart: Bars, styles: Styles) -> None:
    series = [name for name in styles if name in set(chart.frame["series"])]
    axes = drawing.panels(len(chart.panels), 0.8 + 0.27 * len(series))
    for ax, (panel, axis) in zip(axes, chart.panels.items(), strict=True):
        frame = chart.frame[chart.frame["panel"] == panel]
        left = np.zeros(len(series))
        for index, part in enumerate(chart.parts):
            values = frame[frame["part"] == part].set_index("series")["value"].reindex(series).fillna(0.0).to_numpy()
            bars = ax.barh(
                range(len(series)), values, left=left, height=0.7, hatch=HATCHES[index % len(HATCHES)],
                color=[styles[name].colour if index == 0 else PAPER for name in series],
                edgecolor=[styles[name].colour for name in series], linewidth=0.7,
            )  # fmt: skip
            for bar, name, value in zip(bars, series, values, strict=True):
                drawing.mark(bar, name, [f"{styles[name].label}, {part}: {number(value, 4)}"])
            left += values
        drawing.axis(ax, "x", axis)
        ax.xaxis.set_major_locator(MaxNLocator(4))
        ax.set_yticks(range(len(series)), [fill(styles[name].label, 22) for name in series])
        ax.set_ylim(len(series) - 0.5, -0.5)
        ax.grid(axis="y", visible=False)
    if len(chart.parts) > 1:
        patches = [
            Patch(facecolor="#777777" if i == 0 else PAPER, edgecolor="#777777", hatch=HATCHES[i % len(HATCHES)])
            for i in range(len(chart.parts))
        ]
        drawing.legend(patches, chart.parts)


def matrices(chart: Heat) -> Iterator[tuple[str, pd.DataFrame]]:
    """The matrix of each panel."""
    for panel in chart.panels:
        frame = chart.frame[chart.frame["panel"] == panel]
        yield panel, frame.pivot_table(index="row", columns="column", values="value", sort=False)


def _heat(drawing: Drawing, chart: Heat) -> None:
    rows = chart.frame.groupby("panel")["row"].nunique().max()
    axes = drawing.panels(len(chart.panels), 1.1 + 0.22 * rows, share=False)
    low, high = float(chart.frame["value"].min()), float(chart.frame["value"].max())
    if chart.middle is not None:
        reach = max(high - chart.middle, chart.middle - low, LEAST_REACH)
        low, high = chart.middle - reach, chart.middle + reach
    mesh = None
    for place, (ax, (panel, matrix)) in enumerate(zip(axes, matrices(chart), strict=True)):
        first = place == 0 or drawing.narrow
        mesh = ax.pcolormesh(
            matrix.to_numpy(), vmin=low, vmax=high, cmap="cividis", edgecolors=PAPER, linewidth=0.3, snap=False
        )
        cells = [(row, column, matrix.loc[row, column]) for row in matrix.index for column in matrix.columns]
        drawing.mark(mesh, "", [f"{panel}, {row}, {column}: {number(value)}" for row, column, value in cells])
        step = max(1, matrix.shape[1] // 8)
        ax.set_xticks(np.arange(0, matrix.shape[1], step) + 0.5, [str(name) for name in matrix.columns[::step]])
        ax.set_yticks(np.arange(len(matrix)) + 0.5, [str(name) if first else "" for name in matrix.index])
        ax.invert_yaxis()
        ax.set(title=panel, xlabel=chart.columns.label, ylabel=chart.rows.label if first else "")
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
        ax.grid(visible=False)
    if mesh is not None:
        where = "bottom" if drawing.narrow else "right"
        drawing.figure.colorbar(mesh, ax=axes, label=chart.value.label, location=where).outline.set_visible(False)
