"""Charts in the browser: the same data, drawn by plotly, with values on hover and cells that can be switched off."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from octavo.report.charts import Axis, Bars, Chart, Curves, Heat, Intervals, mean_and_spread
from octavo.report.style import CellStyle

Styles = Mapping[str, CellStyle]
PATTERNS = ("", "/", ".", "x")
MARGINS = {"l": 10, "r": 10, "t": 56, "b": 10}
BELOW = 78
"""Pixels from an axis to the legend, with room for ticks and title."""


def plot(chart: Chart, styles: Styles) -> go.Figure:
    """Draw a chart."""
    match chart:
        case Curves():
            figure, height = _curves(chart, styles), 420
        case Intervals():
            figure, height = _intervals(chart, styles), 90 + 80 * len(chart.blocks) + 34 * len(chart.rows)
        case Bars():
            figure, height = _bars(chart, styles), 170 + 40 * chart.frame["series"].nunique()
        case Heat():
            figure, height = _heat(chart), 190 + 30 * chart.frame["row"].nunique()
    figure.update_layout(
        template="plotly_white", height=height, margin=MARGINS,
        font={"family": "system-ui, sans-serif", "size": 12},
        legend={"orientation": "h", "yanchor": "top", "y": -BELOW / (height - MARGINS["t"] - MARGINS["b"]), "x": 0},
    )  # fmt: skip
    return figure


def _grid(panels: int, titles: list[str], *, shared: bool) -> go.Figure:
    return make_subplots(1, panels, shared_yaxes=shared, subplot_titles=titles, horizontal_spacing=0.06)


def _curves(chart: Curves, styles: Styles) -> go.Figure:
    figure = _grid(len(chart.panels), [chart.titles.get(panel, "") for panel in chart.panels], shared=chart.shared)
    for column, (panel, axis) in enumerate(chart.panels.items(), 1):
        frame = chart.frame[chart.frame["panel"] == panel]
        for name, style in styles.items():
            own = frame[frame["series"] == name]
            if own.empty:
                continue
            for which, trace in _band(own, style):
                trace.update(legendgroup=name, showlegend=which == "line" and column == 1)
                figure.add_trace(trace, row=1, col=column)
        _axis(figure, "x", axis, column)
        _axis(figure, "y", chart.y, column, label=column == 1 or not chart.shared)
    return figure


def _band(own: pd.DataFrame, style: CellStyle) -> list[tuple[str, go.Scatter]]:
    points = mean_and_spread(own)
    x, y = points["x"], points["y"]
    line = go.Scatter(
        x=x["mean"], y=y["mean"], name=style.label, mode="lines+markers",
        line={"color": style.colour, "dash": style.plotly_dash, "width": 2},
        marker={"symbol": style.plotly_marker, "size": 6},
        customdata=y[["min", "max"]].to_numpy(),
        hovertemplate="%{y:.4g} (seeds %{customdata[0]:.4g} to %{customdata[1]:.4g}) at %{x:.4s}",
    )  # fmt: skip
    if own["seed"].nunique() < 2:
        return [("line", line)]
    band = go.Scatter(
        x=[*x["min"], *x["max"][::-1]], y=[*y["min"], *y["max"][::-1]], fill="toself", mode="none",
        fillcolor=_pale(style.colour), hoverinfo="skip",
    )  # fmt: skip
    return [("band", band), ("line", line)]


def _intervals(chart: Intervals, styles: Styles) -> go.Figure:
    heights = [len(block) + 1 for block in chart.blocks]
    figure = make_subplots(
        len(chart.blocks), len(chart.panels), shared_yaxes=True, horizontal_spacing=0.06, row_heights=heights,
        vertical_spacing=2 / sum(heights) if len(heights) > 1 else None,
    )  # fmt: skip
    shown: set[str] = set()
    for line, rows in enumerate(chart.blocks, 1):
        for column, (panel, axis) in enumerate(chart.panels.items(), 1):
            frame = chart.frame[(chart.frame["panel"] == panel) & chart.frame["row"].isin(rows)]
            for name in (name for name in styles if name in set(frame["series"])):
                for trace in _marks(frame[frame["series"] == name], styles[name]):
                    trace.update(showlegend=trace.opacity == 1 and name not in shown)
                    figure.add_trace(trace, row=line, col=column)
                shown.add(name)
            # after the traces: plotly draws no line into a subplot without any
            if panel in chart.band:
                low, high = chart.band[panel]
                figure.add_vrect(x0=low, x1=high, fillcolor="#999999", opacity=0.18, line_width=0, layer="below",
                                 row=line, col=column)  # type: ignore[arg-type]  # fmt: skip
            if panel in chart.zero:
                figure.add_vline(x=chart.zero[panel], line_color="#333333", line_width=1,
                                 row=line, col=column)  # type: ignore[arg-type]  # fmt: skip
            _axis(figure, "x", axis, column, row=line)
        figure.update_yaxes(categoryorder="array", categoryarray=list(rows)[::-1], automargin=True, row=line)
    return figure


def _marks(own: pd.DataFrame, style: CellStyle) -> Iterator[go.Scatter]:
    """A series' seeds (pale), and its estimates with their intervals."""
    for role, opacity, size in (("seed", 0.35, 7), ("estimate", 1.0, 10)):
        part = own[own["role"] == role]
        if part.empty:
            continue
        bars = part[["low", "high"]].astype(float).sub(part["value"].astype(float), axis=0).abs()
        yield go.Scatter(
            x=part["value"], y=part["row"], mode="markers", name=style.label, legendgroup=style.cell, opacity=opacity,
            marker={"color": style.colour, "symbol": style.plotly_marker, "size": size},
            error_x={"array": bars["high"], "arrayminus": bars["low"], "color": style.colour}
            if role == "estimate" and bars["high"].notna().any() else None,
            hovertemplate="%{x:.5g}<extra>%{y}</extra>",
        )  # fmt: skip


def _bars(chart: Bars, styles: Styles) -> go.Figure:
    figure = _grid(len(chart.panels), [""] * len(chart.panels), shared=True)
    names = [name for name in styles if name in set(chart.frame["series"])]
    for column, (panel, axis) in enumerate(chart.panels.items(), 1):
        frame = chart.frame[chart.frame["panel"] == panel]
        for index, part in enumerate(chart.parts):
            values = frame[frame["part"] == part].set_index("series")["value"].reindex(names)
            colours = [styles[name].colour for name in names]
            figure.add_trace(
                go.Bar(
                    x=values, y=[styles[name].label for name in names], orientation="h", name=part, legendgroup=part,
                    showlegend=column == 1,
                    marker={"color": colours if index == 0 else "white", "line": {"color": colours, "width": 1},
                            "pattern": {"shape": PATTERNS[index], "fgcolor": colours}},
                    hovertemplate="%{x:.4g}<extra>%{y}: " + part + "</extra>",
                ),
                row=1, col=column,
            )  # fmt: skip
        _axis(figure, "x", axis, column)
    figure.update_layout(barmode="stack")
    figure.update_yaxes(autorange="reversed", automargin=True)
    return figure


def _heat(chart: Heat) -> go.Figure:
    figure = _grid(len(chart.panels), list(chart.panels), shared=True)
    for column, panel in enumerate(chart.panels, 1):
        frame = chart.frame[chart.frame["panel"] == panel]
        matrix = frame.pivot_table(index="row", columns="column", values="value", sort=False)
        figure.add_trace(
            go.Heatmap(
                z=matrix.to_numpy(), x=[str(name) for name in matrix.columns], y=[str(name) for name in matrix.index],
                coloraxis="coloraxis", hovertemplate="%{y}, %{x}: %{z:.3g}<extra></extra>",
            ),
            row=1, col=column,
        )  # fmt: skip
        figure.update_xaxes(title_text=chart.columns.label, type="category", row=1, col=column)
    figure.update_yaxes(autorange="reversed", type="category", automargin=True)
    figure.update_yaxes(title_text=chart.rows.label, row=1, col=1)
    colours: dict[str, Any] = {"colorscale": "Cividis"}
    if chart.middle is not None:
        colours["cmid"] = chart.middle
    figure.update_layout(coloraxis={**colours, "colorbar": {"title": chart.value.label.replace("\n", "<br>")}})
    return figure


def _axis(figure: go.Figure, which: str, axis: Axis, column: int, *, label: bool = True, row: int = 1) -> None:
    update = figure.update_xaxes if which == "x" else figure.update_yaxes
    update(
        title_text=axis.label if label else "", type="log" if axis.log else "linear",
        exponentformat="SI" if axis.engineering else "power", row=row, col=column,
    )  # fmt: skip


def _pale(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.15)"
