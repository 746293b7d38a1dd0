"""Charts drawn with matplotlib: on paper, and as SVG inside the page in a wide and a narrow version.

Files are PDF, SVG and PNG with their data as CSV, the same bytes every time. What belongs to a cell is marked, so that
the page can show a mark's number and switch a cell off.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import StringIO
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
from scipy.optimize import isotonic_regression

from octavo.files import atomic_path
from octavo.report.charts import NO_CELL, Bars, Chart, ChartAxis, Curves, Fits, Heat, Intervals, mean_and_spread
from octavo.report.style import CellStyle, number, percent

WIDTH = 7.0
"""Inches: the text width of an A4 page."""
NARROW = 3.6
"""Inches: text of 8 points is 11 pixels high where this fills a telephone of 375 pixels."""
INK, FAINT, RULE, PAPER = "#222222", "#666666", "#e5e5e5", "#ffffff"
"""Of texts and lines, of frames, of grids, of what lies below: the page puts its own in their place."""
SINGLE = ("seed", "pair")
"""Roles of what is drawn pale, behind the estimate that it makes."""
HATCHES = ("", "////", "....", "xxxx")
FORMATS = ("pdf", "svg", "png")
LEAST_REACH = 0.1
"""Colours span no less on either side of the middle: where all is even, noise would look like a pattern."""
POINTS = 72
"""An inch."""
HASHED = re.compile(r"""(?<=["#])[a-z][0-9a-f]{10}(?=[")])""")
"""An identifier that matplotlib makes of a shape's numbers."""
TALLEST = 8.5
"""Inches that a page has for a figure with its caption."""
NAMES_FROM = 1.07
"""Where names of lines begin, in widths of the panel that they are right of."""
LINE_POINTS, LINE_MARKS = 1600, 480
"""Of all lines of a chart: points that they are drawn through, and those that are marked. Each line has its share of
them, evenly spaced with both ends; the CSV has all."""

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
    "axes.axisbelow": True,
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
Said = tuple[str, str]
"""What a mark is of, and its number, both as text."""
PLAIN = CellStyle(NO_CELL, "", INK, (), "o")
"""Of what belongs to no cell."""


@dataclass
class Drawing:
    """A chart drawn, with what its marks stand for."""

    narrow: bool = False
    figure: Figure = field(default_factory=Figure)
    marks: dict[str, tuple[str, Sequence[Said]]] = field(default_factory=dict)
    """Identifier of an artist -> the cell that it shows (or none), and what each mark in it says."""

    def mark(self, artist: Artist, cell: str, said: Sequence[Said] = ()) -> None:
        """Say what an artist shows."""
        name = f"mark-{len(self.marks)}"
        artist.set_gid(name)
        self.marks[name] = (cell, said)

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
            ends = (10 ** np.floor(np.log10(end)) for end in (low, high))  # as long as a label: ticks are round
            room = self._labels(ax, max((f"{end:g}" for end in ends), key=len)) if which == "x" else 12
            # over more decades labels would run into each other
            between = (2.0, 5.0) if high < 1e4 * low and 3 * np.log10(high / low) < room else ()
            decades = LogLocator(subs=(1.0, *between), numticks=min(12, max(2, room)))
            few = high <= 4 * low or sum(low <= at <= high for at in decades.tick_values(low, high)) < 2
            its.set_major_locator(_even_ticks(low, high, room) if few else decades)
            its.set_minor_locator(NullLocator())
            its.set_minor_formatter(NullFormatter())
            its.set_major_formatter("{x:g}")
        if axis.engineering:
            its.set_major_formatter(EngFormatter(sep="\N{THIN SPACE}"))

    def _labels(self, ax: Axes, label: str) -> int:
        """How many labels as long as one fit below a panel."""
        spec = ax.get_subplotspec()
        across = spec.get_gridspec().ncols if spec else 1
        inches = self.figure.get_figwidth() / across - 0.5
        return int(inches * POINTS / (4.2 * min(len(label), 7) + 6))

    def legend(self, handles: Sequence[Any], labels: Sequence[str]) -> int:
        """A legend below, in as many columns as there is room for; how many rows it has."""
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
            return -(-len(labels) // columns)
        return 0


def _even_ticks(low: float, high: float, room: int) -> MaxNLocator:
    """Ticks at even steps on a logarithmic axis that has room for so many labels: the last two are the closest."""
    for most in (5, 4, 3):
        locator = MaxNLocator(most)
        ticks = [at for at in locator.tick_values(low, high) if low <= at <= high]
        if len(ticks) < 3 or np.log(ticks[-1] / ticks[-2]) * room >= np.log(high / low):
            break
    return locator


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
            with atomic_path(path) as temporary:
                if suffix == "svg":
                    temporary.write_text(svg(figure), encoding="utf-8")
                else:
                    metadata = {"pdf": {"CreationDate": None}, "png": {"Software": None}}[suffix]
                    figure.savefig(temporary, format=suffix, dpi=200, metadata=metadata)
        plt.close(figure)


def svg(figure: Figure, *, transparent: bool = False) -> str:
    """A figure as SVG, the same text each time.

    matplotlib's layout differs between processes in last bits, of which it makes the identifiers of shapes: they are
    numbered here.
    """
    file, numbers = StringIO(), dict[str, str]()
    figure.savefig(file, format="svg", transparent=transparent, metadata={"Date": None})
    return HASHED.sub(lambda found: numbers.setdefault(found[0], f"shape-{len(numbers) + 1}"), file.getvalue())


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
        case Fits():
            _fits(drawing, chart)
    return drawing


def _curves(drawing: Drawing, chart: Curves, styles: Styles) -> None:
    # panels of their own scales come several to a page
    axes = drawing.panels(
        len(chart.panels),
        1.5 if chart.ends and not drawing.narrow else 2.6 if chart.shared else 2.1,
        share=chart.shared,
    )
    shown = {name: style for name, style in styles.items() if name in set(chart.frame["series"])}
    whole = chart.frame if chart.whole is None else chart.whole
    lines = whole.groupby(["panel", "series"]).ngroups
    for place, (ax, (panel, x)) in enumerate(zip(axes, chart.panels.items(), strict=True)):
        frame = chart.frame[chart.frame["panel"] == panel]
        for name, style in shown.items():
            own = frame[frame["series"] == name]
            if len(own):
                _line_with_band(drawing, ax, own, style, LINE_POINTS // lines, LINE_MARKS // lines)
        if chart.whole is not None:
            ax.update_datalim(whole.loc[whole["panel"] == panel, ["x", "y"]].to_numpy())
        drawing.axis(ax, "x", x)
        drawing.axis(ax, "y", chart.y, label=place == 0 or drawing.narrow or not chart.shared)
        ax.set_title(chart.titles.get(panel, ""))
    last = chart.frame[chart.frame["panel"] == list(chart.panels)[-1]]
    if chart.ends and not drawing.narrow and set(shown) == set(last["series"]):
        _names_at_ends(drawing, axes[-1], last, shown)
    else:
        handles = [axes[0].plot([], [], **_line(style))[0] for style in shown.values()]
        rows = drawing.legend(handles, [style.label for style in shown.values()])
        # a long legend leaves the panels their height
        drawing.figure.set_figheight(drawing.figure.get_figheight() + 0.16 * max(0, rows - 2))


def _names_at_ends(drawing: Drawing, ax: Axes, frame: pd.DataFrame, styles: Styles) -> None:
    """Each line's name right of the panel, as near to the height of its end as the others leave room, and a thin line
    to that end. A panel too low for all names grows."""
    ends = {str(name): mean_and_spread(own).iloc[-1] for name, own in frame.groupby("series")}
    names = sorted(ends, key=lambda one: ends[one]["y", "mean"])
    labels = {
        name: ax.text(NAMES_FROM, 0.5, fill(styles[name].label, 34), transform=ax.transAxes, va="center", fontsize=7)
        for name in names
    }
    drawing.figure.draw_without_rendering()  # lays it out: how high the panel is
    heights = np.array([label.get_window_extent().height + 1 for label in labels.values()])
    panel = ax.get_window_extent().height
    if (short := heights.sum() - panel) > 0:
        drawing.figure.set_figheight(drawing.figure.get_figheight() + short / drawing.figure.dpi)
        panel += short
    to_panel = ax.transData + ax.transAxes.inverted()
    points = [to_panel.transform((ends[name]["x", "mean"], ends[name]["y", "mean"])) for name in names]
    places = spread(np.array([y for _, y in points]), heights / panel)
    for name, (x, y), at in zip(names, points, places, strict=True):
        labels[name].set_y(at)
        drawing.mark(labels[name], name)
        style = styles[name]
        (leader,) = ax.plot(
            [x, NAMES_FROM - 0.03], [y, at], color=style.colour, linewidth=0.6, transform=ax.transAxes, clip_on=False
        )
        (key,) = ax.plot(NAMES_FROM - 0.03, at, transform=ax.transAxes, clip_on=False, **_line(style))
        for artist in (leader, key):
            drawing.mark(artist, name)


def spread(wanted: np.ndarray, heights: np.ndarray) -> np.ndarray:
    """Middles of boxes of these heights, one above the other between 0 and 1 in the order of `wanted`, none over
    another, as near to where they are wanted as least squares brings them. Together they are at most 1 high."""
    at_the_bottom = np.cumsum(heights) - heights / 2
    return at_the_bottom + np.clip(isotonic_regression(wanted - at_the_bottom).x, 0, 1 - heights.sum())


def _line(style: CellStyle) -> dict[str, Any]:
    return {"color": style.colour, "dashes": style.dash or (None, None), "marker": style.marker, "markeredgewidth": 0}


def _spaced(count: int, most: int) -> list[int]:
    """At most so many places of `count`, evenly spaced, the first and the last with them."""
    return np.unique(np.linspace(0, count - 1, min(count, max(2, most))).round().astype(int)).tolist()


def _line_with_band(
    drawing: Drawing, ax: Axes, own: pd.DataFrame, style: CellStyle, most_points: int, most_marks: int
) -> None:
    """The mean over seeds, and a band from the lowest to the highest of them."""
    points = mean_and_spread(own)
    points = points.iloc[_spaced(len(points), most_points)]
    x, y = points["x"], points["y"]
    several = own["seed"].nunique() > 1
    marked = _spaced(len(points), most_marks)
    (line,) = ax.plot(x["mean"], y["mean"], markevery=marked, **_line(style))
    texts = []
    for at, mean, low, high in zip(
        x["mean"].iloc[marked], *(y[one].iloc[marked] for one in ("mean", "min", "max")), strict=True
    ):
        seeds = f" (seeds {number(low, 4)} to {number(high, 4)})" if several else ""
        texts.append((f"{style.label}:", f"{number(mean, 4)}{seeds} at {number(at, 4)}"))
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

    styles = {**styles, NO_CELL: PLAIN}
    series = [name for name in styles if name in set(chart.frame["series"])]
    per_row = chart.marks_of_a_row
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
        if chart.whole is not None:
            own_panel = chart.whole[chart.whole["panel"] == panel]
            reach = own_panel[["value", "low", "high"]].to_numpy(dtype=float).ravel()
            ax.update_datalim([(one, 0.0) for one in reach[np.isfinite(reach)]], updatey=False)
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
    single = own["role"].isin(SINGLE)
    seeds, estimates = own[single], own[~single]
    (pale,) = ax.plot(seeds["value"], seeds["y"], marker=style.marker, color=style.colour, alpha=0.35, markersize=3,
                      linestyle="")  # fmt: skip
    singles = zip(seeds["row"], seeds["role"], seeds["value"], strict=True)
    drawing.mark(pale, style.cell, [(f"{row}, one {role}:", number(value, 4)) for row, role, value in singles])
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


def said(one: Mapping[Any, Any]) -> Said:
    """A row of an `Intervals` chart."""
    interval = "" if pd.isna(one["low"]) else f", 95 % interval {number(one['low'], 4)} to {number(one['high'], 4)}"
    return f"{one['row']}:", f"{number(one['value'], 4)}{interval}"


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
                drawing.mark(bar, name, [(f"{styles[name].label}, {part}:", number(value, 4))])
            left += values
        if chart.whole is not None:
            longest = chart.whole[chart.whole["panel"] == panel].groupby("series")["value"].sum().max()
            ax.update_datalim([(longest, 0.0)], updatey=False)
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
    axes = drawing.panels(len(chart.panels), min(1.1 + 0.22 * rows, TALLEST), share=False)
    every = -(-rows * 0.22 // TALLEST)  # rows that are named, where they are low
    values = (chart.frame if chart.whole is None else chart.whole)["value"]
    low, high = float(values.min()), float(values.max())
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
        drawing.mark(mesh, "", [(f"{panel}, {row},", f"{column}: {number(value)}") for row, column, value in cells])
        step = max(1, matrix.shape[1] // 8)
        ax.set_xticks(np.arange(0, matrix.shape[1], step) + 0.5, [str(name) for name in matrix.columns[::step]])
        places = np.arange(0, len(matrix), int(every))
        ax.set_yticks(places + 0.5, [str(matrix.index[at]) if first else "" for at in places])
        ax.invert_yaxis()
        title = fill(panel, 44 if drawing.narrow else 72 // len(axes))
        ax.set(title=title, xlabel=chart.columns.label, ylabel=chart.rows.label if first else "")
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
        ax.grid(visible=False)
    if mesh is not None:
        where = "bottom" if drawing.narrow else "right"
        drawing.figure.colorbar(mesh, ax=axes, label=chart.value.label, location=where).outline.set_visible(False)


def _fits(drawing: Drawing, chart: Fits) -> None:
    axes = drawing.panels(len(chart.panels), 2.6, share=False)
    handles = {}
    for ax, (panel, (x, y)) in zip(axes, chart.panels.items(), strict=True):
        if panel in chart.one:
            ax.axhline(chart.one[panel], color=INK, linewidth=0.8)
        for name, style in chart.series.items():
            own = chart.frame[(chart.frame["panel"] == panel) & (chart.frame["series"] == name)]
            if len(own):
                handles[style.label] = _fitted(drawing, ax, own, style)
        drawing.axis(ax, "x", x)
        drawing.axis(ax, "y", y)
    drawing.legend(list(handles.values()), list(handles))


def _fitted(drawing: Drawing, ax: Axes, own: pd.DataFrame, style: CellStyle) -> Artist:
    """One series: its line and band, its points, and its open marks with their intervals; what its legend shows."""
    fit, measured, foretold = (own[own["role"] == role] for role in ("fit", "measured", "foretold"))
    look = {"color": style.colour, "dashes": style.dash or (None, None)}
    (line,) = ax.plot(fit["x"], fit["y"], **look)
    drawing.mark(line, "")
    if len(fit):
        drawing.mark(
            ax.fill_between(fit["x"], fit["low"], fit["high"], color=style.colour, alpha=0.15, linewidth=0), ""
        )
    for part, fill_colour in ((measured, style.colour), (foretold, PAPER)):
        if len(part):
            drawing.mark(ax.vlines(part["x"], part["low"], part["high"], color=style.colour, linewidth=1.2), "")
            (dots,) = ax.plot(part["x"], part["y"], marker=style.marker, color=style.colour, linestyle="", markersize=5,
                              markerfacecolor=fill_colour, markeredgewidth=1.0)  # fmt: skip
            drawing.mark(dots, "", [(f"{style.label},", fitted_words(one)) for one in part.to_dict("records")])
    return ax.plot([], [], marker=style.marker, markersize=4, **look)[0]


def fitted_words(one: Mapping[Any, Any]) -> str:
    """A point of a `Fits` chart as text."""
    text = f"{one['role']}: {number(one['y'], 4)} at {one['x']:.3g}"
    return text if pd.isna(one["low"]) else f"{text} ({number(one['low'], 4)} to {number(one['high'], 4)})"
