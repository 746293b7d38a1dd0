"""The error of FP8 sums against their length as a chart in the report's style, for `octavo accumulation --figure`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pandas as pd

from octavo.report.charts import ChartAxis, Curves
from octavo.report.style import DASHES, HUES, MARKERS, CellStyle

NAMES = {"fp32": "FP32 sums", "promoted": "14 bits, promoted every 128", "fp14": "14 bits"}
"""What each accumulation is called."""
STYLES: Mapping[str, CellStyle] = {
    name: CellStyle(name, label, HUES[place][0], DASHES[place], MARKERS[place])
    for place, (name, label) in enumerate(NAMES.items())
}


def accumulation_chart(errors: Iterable[tuple[int, str, float, float]]) -> Curves:
    """Largest and root-mean-square error over K, of (K, accumulation, largest, root mean square).

    A sum without any error, of which short ones in FP32 are, has no place on a logarithmic axis and is left out.
    """
    rows = [
        {"panel": panel, "series": accumulation, "seed": 0, "x": k, "y": error}
        for k, accumulation, largest, typical in errors
        for panel, error in (("largest", largest), ("typical", typical))
        if error > 0
    ]
    titles = {"largest": "largest error", "typical": "root mean square"}
    x = ChartAxis("K, products in a sum", log=True)
    y = ChartAxis("error / outputs' root mean square", log=True)
    return Curves("accumulation", pd.DataFrame(rows), dict.fromkeys(titles, x), y, titles)
