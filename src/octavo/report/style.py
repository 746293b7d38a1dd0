"""Names, colours and numbers as the report shows them: the same for a cell everywhere.

Colours are Okabe and Ito's (Color Universal Design, 2008), safe for colour-blind readers. An architecture has a hue, a
line style tells precisions apart and a marker architectures, so that nothing rests on colour alone (or on colour at
all, in print).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from octavo.evidence.names import cell_label, family_of

HUES = (
    ("#0072B2", "#56B4E9", "#00466e", "#9fd3f2"),
    ("#D55E00", "#E69F00", "#7f3800", "#f3c66b"),
    ("#009E73", "#6fcfb0", "#005c43", "#b0e5d4"),
    ("#CC79A7", "#e3b5cf", "#7d3f62", "#f0d8e6"),
)
"""By architecture, then by precision; of a ladder by family, then by size."""
DASHES: tuple[tuple[float, ...], ...] = ((), (4, 1.5), (1, 1), (6, 1.5, 1, 1.5))
MARKERS = ("o", "s", "^", "D")


@dataclass(frozen=True)
class CellStyle:
    """How a cell is named and drawn."""

    cell: str
    label: str
    colour: str
    dash: tuple[float, ...]
    """Lengths in points, on and off; empty: a solid line."""
    marker: str


def cell_styles(
    runs: pd.DataFrame, architectures: Sequence[str] = (), ablations: Sequence[str] = ()
) -> dict[str, CellStyle]:
    """A style for each cell of `runs.parquet`, in its order.

    `architectures` and `ablations` are the whole experiment's, so that a cell looks the same in the report of one
    ablation; what they lack follows in the order of the runs.
    """
    cells = runs.drop_duplicates("cell")
    architectures = list(dict.fromkeys([*architectures, *cells["architecture"]]))
    precisions = list(dict.fromkeys(["bf16", *cells["precision"]]))
    ablations = list(dict.fromkeys([*ablations, *cells["ablation"].dropna()]))
    families: dict[str, list[str]] = {}
    for name in architectures:
        families.setdefault(family_of(name), []).append(name)
    styles = {}
    for row in cells.itertuples():
        family = family_of(row.architecture)
        again, place = divmod(list(families).index(family), len(HUES))
        shade = precisions.index(row.precision)
        size = families[family].index(row.architecture)
        if isinstance(row.ablation, str):  # another hue than its baseline's
            place, shade = (place + 2) % len(HUES), ablations.index(row.ablation)
        turn = (shade + shade // 4 + again) % 4  # colours come again after four, with other lines
        styles[row.cell] = CellStyle(
            cell=row.cell,
            label=cell_label(
                row.architecture,
                row.precision,
                row.ablation if isinstance(row.ablation, str) else None,
                emulated=bool(row.emulated),
            ),
            colour=HUES[place][(shade if len(families[family]) == 1 else size) % 4],
            dash=DASHES[turn],
            marker=MARKERS[(place + again) % len(MARKERS)],
        )
    return styles


# --- numbers --------------------------------------------------------------------------------------------------------

MISSING = "–"


def number(value: float | None, digits: int = 3) -> str:
    """A number with so many significant digits, and all before the point; thousands separated; a dash for none."""
    if value is None or not math.isfinite(value):
        return MISSING
    if value == 0:
        return "0"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    if decimals > 8:
        return f"{value:.{digits - 1}e}"
    return f"{round(value, decimals):,.{decimals}f}".replace("-", "\N{MINUS SIGN}")


def count(value: float | None) -> str:
    """A large count with its unit: 556,704 -> 557 k, 1.5e9 -> 1.50 B."""
    if value is None or not math.isfinite(value):
        return MISSING
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{number(value / size)} {unit}"
    return number(value)


def percent(value: float | None, digits: int = 2) -> str:
    """A signed percentage with so many decimals."""
    if value is None or not math.isfinite(value):
        return MISSING
    sign = "+" if value > 0 else "\N{MINUS SIGN}" if value < 0 else "±"
    return f"{sign}{abs(value):.{digits}f} %"


def money(value: float | None, currency: str | None) -> str:
    """An amount with its currency, in cents below one of it."""
    if value is None or not math.isfinite(value):
        return MISSING
    if currency in ("USD", "EUR") and 0 < abs(value) < 1:
        return f"{number(100 * value, 2)} cents"
    symbol = {"USD": "$", "EUR": "€", "GBP": "£"}.get(currency or "", f"{currency} " if currency else "")
    return f"{symbol}{number(value)}"


def energy(kwh: float | None) -> str:
    """Kilowatt-hours as people say them: 0.106 Wh, 1.2 kWh, 3.4 MWh."""
    if kwh is None or not math.isfinite(kwh):
        return MISSING
    if 0 < kwh < 1:
        return f"{number(1000 * kwh)} Wh"
    return f"{number(kwh)} kWh" if kwh < 1000 else f"{number(kwh / 1000)} MWh"


def time_unit(hours: float) -> tuple[str, float]:
    """The unit in which so many hours are a number of a few digits, and how many of it an hour has."""
    units = (("hours", 1.0), ("minutes", 60.0), ("seconds", 3600.0))
    return next((unit for unit in units if hours * unit[1] >= 2), units[-1])


def duration(seconds: float | None) -> str:
    """Seconds as people say them: 95 s, 12 min, 3.5 h."""
    if seconds is None or not math.isfinite(seconds):
        return MISSING
    if seconds < 120:
        return f"{number(seconds)} s"
    return f"{number(seconds / 60)} min" if seconds < 7200 else f"{number(seconds / 3600)} h"
