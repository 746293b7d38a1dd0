"""One cell in short: means over its seeds, and sums of what all of its runs took.

This is what the report's table of the grid shows, and what `octavo trace cells.<cell>.<column>` finds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from octavo.records import Estimate
from octavo.statistics import t_interval

if TYPE_CHECKING:
    import pandas as pd

LOSS_UNIT = "nats per token"

MEANS = {
    "training_loss": LOSS_UNIT,
    "validation_loss": LOSS_UNIT,
    "validation_bits_per_byte": "bits per byte",
}
"""Columns of `runs.parquet` whose mean over the completed seeds is taken, with its 95 % Student's t interval."""
SUMS = ("device_hours_final", "device_hours_all_in", "energy_kwh_all_in", "cost_final", "cost_all_in")
"""Columns that are added up over all seeds; null where no run has the number."""
SIZES = ("total_parameters", "active_parameters", "flops_per_token")
"""Columns that are the same for all seeds."""
COUNTS = ("runs_completed", "runs")


@dataclass(frozen=True)
class CellSummary:
    """The numbers of one cell by column."""

    means: dict[str, Estimate | None]
    """None where no seed has the number."""
    numbers: dict[str, float | None]
    """SIZES, SUMS and COUNTS."""

    @property
    def columns(self) -> dict[str, Estimate | float | None]:
        """All of them."""
        return {**self.numbers, **self.means}


def summary(runs: pd.DataFrame) -> dict[str, CellSummary]:
    """Cell -> its numbers, from `runs.parquet`, in the table's order."""
    return {str(cell): _of_cell(own) for cell, own in runs.groupby("cell", sort=False)}


def _of_cell(own: pd.DataFrame) -> CellSummary:
    done = own[own["status"] == "completed"]
    means = {name: mean(done[name], unit) for name, unit in MEANS.items()}
    numbers = {
        **{name: _known(own[name].iloc[0]) for name in SIZES},
        **{name: _known(own[name].sum(min_count=1)) for name in SUMS},
        **dict(zip(COUNTS, (len(done), len(own)), strict=True)),
    }
    return CellSummary(means, numbers)


def mean(values: pd.Series, unit: str) -> Estimate | None:
    """The mean over seeds with its interval; None where no seed has a value."""
    known = values.dropna().to_numpy(dtype=float)
    if not len(known):
        return None
    found = t_interval(known)
    return Estimate(
        value=found.estimate, low=found.low, high=found.high, confidence=found.confidence, n=found.n, unit=unit
    )


def _known(value: Any) -> float | None:
    import pandas as pd

    return None if pd.isna(value) else value
