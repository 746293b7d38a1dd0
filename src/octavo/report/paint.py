"""Charts on paper: seaborn and matplotlib, as PDF, SVG and PNG with their data as CSV, the same bytes every time."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("SOURCE_DATE_EPOCH", "0")  # matplotlib's PDF backend writes no time of making then

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from octavo.files import atomic_path
from octavo.report.charts import Axis, Bars, Chart, Curves, Heat, Intervals, mean_and_spread
from octavo.report.style import CellStyle

WIDTH = 7.0
"""Inches: the text width of an A4 page."""
HATCHES = ("", "////", "....", "xxxx")
FORMATS = ("pdf", "svg", "png")

STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "legend.fontsize": 7.5,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e5e5e5",
    "grid.linewidth": 0.6,
    "axes.edgecolor": "#666666",
    "lines.linewidth": 1.4,
    "lines.markersize": 3.5,
    "hatch.linewidth": 0.5,
    "svg.hashsalt": "octavo",
    "svg.fonttype": "path",
    "pdf.fonttype": 42,
    "figure.constrained_layout.use": True,
}

Styles = Mapping[str, CellStyle]


def save(chart: Chart, styles: Styles, folder: Path) -> None:
    """Write a chart's PDF, SVG, PNG and CSV into `folder`."""
    with plt.rc_context(STYLE):
        figure = paint(chart, styles)
        for suffix in FORMATS:
            _write(figure, folder / f"{chart.name}.{suffix}")
        plt.close(figure)
    with atomic_path(folder / f"{chart.name}.csv") as temporary:
        chart.frame.to_csv(temporary, index=False, float_format="%.10g", lineterminator="\n")


def save_as(path: Path, chart: Chart, styles: Styles) -> None:
    """Write a chart to one file, in the format that its name ends in."""
    with plt.rc_context(STYLE):
        figure = paint(chart, styles)
        _write(figure, path)
        plt.close(figure)


def _write(figure: Figure, path: Path) -> None:
    suffix = path.suffix[1:]
    metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {"Software": None}}[suffix]
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format=suffix, dpi=200, metadata=metadata)


def paint(chart: Chart, styles: Styles) -> Figure:
    """Draw a chart."""
    match chart:
        case Curves():
            return _curves(chart, styles)
        case Intervals():
            return _intervals(chart, styles)
        case Bars():
            return _bars(chart, styles)
        case Heat():
            return _heat(chart)


def _curves(chart: Curves, styles: Styles) -> Figure:
    size = (WIDTH, 2.6 if chart.shared else 2.1)  # panels of their own scales come several to a page
    figure, axes = plt.subplots(
        1, len(chart.panels), figsize=size, sharey=chart.shared, squeeze=False, layout="constrained"
    )
    series = [name for name in styles if name in set(chart.frame["series"])]
    for place, (ax, (panel, x)) in enumerate(zip(axes[0], chart.panels.items(), strict=True)):
        frame = chart.frame[chart.frame["panel"] == panel]
        for name in series:
            style, own = styles[name], frame[frame["series"] == name]
            if own.empty:
                continue
            ax.plot(
                [], [], color=style.colour, dashes=style.dash or (None, None), marker=style.marker, label=style.label
            )
            _line_with_band(ax, own, style)
        _axis(ax, "x", x)
        _axis(ax, "y", chart.y, label=place == 0 or not chart.shared)
        ax.set_title(chart.titles.get(panel, ""))
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)), frameon=False, handlelength=3)
    return figure


def _line_with_band(ax: Axes, own: pd.DataFrame, style: CellStyle) -> None:
    """The mean over seeds, and a band from the lowest to the highest of them."""
    points = mean_and_spread(own)
    x, y = points["x"], points["y"]
    sns.lineplot(x=x["mean"], y=y["mean"], ax=ax, color=style.colour, estimator=None, legend=False, marker=style.marker,
                 markeredgewidth=0, dashes=False)  # fmt: skip
    if style.dash:
        ax.lines[-1].set_dashes(style.dash)
    if own["seed"].nunique() > 1:
        ax.fill([*x["min"], *x["max"][::-1]], [*y["min"], *y["max"][::-1]], color=style.colour, alpha=0.15, linewidth=0)


def _intervals(chart: Intervals, styles: Styles) -> Figure:
    series = [name for name in styles if name in set(chart.frame["series"])]
    per_row = max(1, int(chart.frame.groupby(["panel", "row"])["series"].nunique().max()))
    named = per_row == 1 and chart.frame.groupby("row")["series"].nunique().max() == 1  # rows name the series already
    heights = [0.45 + len(rows) * (0.1 + 0.12 * per_row) for rows in chart.blocks]
    legend = 0.0 if named else 0.18 * -(-len(series) // 4)
    figure, axes = plt.subplots(
        len(chart.blocks), len(chart.panels), figsize=(WIDTH, 0.25 + sum(heights) + legend), sharey="row",
        squeeze=False, height_ratios=heights, layout="constrained",
    )  # fmt: skip
    for rows, of_block in zip(chart.blocks, axes, strict=True):
        for ax, (panel, axis) in zip(of_block, chart.panels.items(), strict=True):
            frame = chart.frame[(chart.frame["panel"] == panel) & chart.frame["row"].isin(rows)]
            if panel in chart.band:
                ax.axvspan(*chart.band[panel], color="#999999", alpha=0.18, linewidth=0, label="margin of the claim")
            if panel in chart.zero:
                ax.axvline(chart.zero[panel], color="#333333", linewidth=0.8)
            for place, name in enumerate(series):
                shift = 0.0 if per_row == 1 else (place - (len(series) - 1) / 2) * 0.7 / len(series)
                _dots(ax, frame[frame["series"] == name], {row: y + shift for y, row in enumerate(rows)}, styles[name])
            _axis(ax, "x", axis)
            ax.set_yticks(range(len(rows)), rows)
            ax.set_ylim(len(rows) - 0.5, -0.5)
            ax.grid(axis="y", visible=False)
    handles, labels = axes[0][0].get_legend_handles_labels()
    if not named:
        figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)), frameon=False)
    return figure


def _dots(ax: Axes, own: pd.DataFrame, heights: Mapping[str, float], style: CellStyle) -> None:
    """One series' seeds (pale), intervals and estimates, each in one artist however many there are."""
    y = own["row"].map(heights)
    seed = own["role"] == "seed"
    ax.plot(own["value"][seed], y[seed], marker=style.marker, color=style.colour, alpha=0.35, markersize=3,
            linestyle="")  # fmt: skip
    known = ~seed & own["low"].notna()
    ax.hlines(y[known], own["low"][known].astype(float), own["high"][known].astype(float), color=style.colour,
              linewidth=1.6)  # fmt: skip
    if not seed.all():
        ax.plot(own["value"][~seed], y[~seed], marker=style.marker, color=style.colour, markersize=5, linestyle="",
                markeredgecolor="white", markeredgewidth=0.6, label=style.label)  # fmt: skip


def _bars(chart: Bars, styles: Styles) -> Figure:
    series = [name for name in styles if name in set(chart.frame["series"])]
    labels = [styles[name].label for name in series]
    figure, axes = plt.subplots(
        1, len(chart.panels), figsize=(WIDTH, 0.8 + 0.27 * len(series)), sharey=True, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for ax, (panel, axis) in zip(axes[0], chart.panels.items(), strict=True):
        frame = chart.frame[chart.frame["panel"] == panel]
        left = np.zeros(len(series))
        for index, part in enumerate(chart.parts):
            values = frame[frame["part"] == part].set_index("series")["value"].reindex(series).fillna(0.0).to_numpy()
            ax.barh(
                range(len(series)), values, left=left, height=0.7, hatch=HATCHES[index % len(HATCHES)],
                color=[styles[name].colour if index == 0 else "#ffffff" for name in series],
                edgecolor=[styles[name].colour for name in series], linewidth=0.7,
            )  # fmt: skip
            left += values
        _axis(ax, "x", axis)
        ax.xaxis.set_major_locator(MaxNLocator(4))
        ax.set_yticks(range(len(series)), labels)
        ax.set_ylim(len(series) - 0.5, -0.5)
        ax.grid(axis="y", visible=False)
    if len(chart.parts) > 1:
        patches = [
            Rectangle((0, 0), 1, 1, facecolor="#777777" if i == 0 else "white", edgecolor="#777777",
                          hatch=HATCHES[i % len(HATCHES)])
            for i in range(len(chart.parts))
        ]  # fmt: skip
        figure.legend(patches, list(chart.parts), loc="outside lower center", ncols=len(chart.parts), frameon=False)
    return figure


def _heat(chart: Heat) -> Figure:
    matrices = {
        panel: chart.frame[chart.frame["panel"] == panel].pivot_table(
            index="row", columns="column", values="value", sort=False
        )
        for panel in chart.panels
    }
    rows = max(len(matrix) for matrix in matrices.values())
    figure, axes = plt.subplots(
        1, len(matrices), figsize=(WIDTH, 1.1 + 0.22 * rows), squeeze=False, layout="constrained"
    )
    low, high = float(chart.frame["value"].min()), float(chart.frame["value"].max())
    if chart.middle is not None:
        reach = max(high - chart.middle, chart.middle - low, 1e-9)
        low, high = chart.middle - reach, chart.middle + reach
    for place, (ax, (panel, matrix)) in enumerate(zip(axes[0], matrices.items(), strict=True)):
        sns.heatmap(
            matrix, ax=ax, vmin=low, vmax=high, cmap="cividis",
            cbar=place == len(matrices) - 1, cbar_kws={"label": chart.value.label}, linewidths=0.3,
            linecolor="white", xticklabels=max(1, matrix.shape[1] // 8), yticklabels=1 if place == 0 else False,
        )  # fmt: skip
        ax.set_title(panel)
        ax.set_xlabel(chart.columns.label)
        ax.set_ylabel(chart.rows.label if place == 0 else "")
        ax.tick_params(axis="both", length=0)
        ax.tick_params(axis="both", labelrotation=0)
        ax.grid(visible=False)
    return figure


def _axis(ax: Axes, which: str, axis: Axis, *, label: bool = True) -> None:
    getattr(ax, f"set_{which}label")(axis.label if label else "")
    its = getattr(ax, f"{which}axis")
    if axis.log:
        getattr(ax, f"set_{which}scale")("log")
        low, high = its.get_view_interval()
        between = (2.0, 5.0) if high < 1e4 * low else ()  # labels over more than four decades would run into each other
        decades = LogLocator(subs=(1.0, *between), numticks=12)
        its.set_major_locator(decades if high > 4 * low else MaxNLocator(5))  # less has too few of these ticks
        its.set_minor_locator(NullLocator())
        its.set_minor_formatter(NullFormatter())
        its.set_major_formatter(EngFormatter(sep="\N{THIN SPACE}") if axis.engineering else "{x:g}")
    elif axis.engineering:
        its.set_major_formatter(EngFormatter(sep="\N{THIN SPACE}"))
