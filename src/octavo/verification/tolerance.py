"""How far two results may lie apart that are equal but for the order of sums: as far as two seeds do.

Training multiplies a difference in the last bit until it is as large as one in the seed, so a run under another layout
is held against what seeds do and nothing smaller. The difference of two results that scatter with standard deviation s
scatters with sqrt(2) s, and the mean of n such differences with sqrt(2 / n) s; s is estimated, so the bound is
Student's (a 95 % prediction interval: one comparison of equals in twenty falls outside).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import sqrt
from statistics import fmean

from scipy import special

CONFIDENCE = 0.95


@dataclass(frozen=True)
class SeedSpread:
    """The standard deviation over seeds, relative to the mean, and the degrees of freedom of its estimate."""

    deviation: float
    freedom: int

    def tolerance(self, pairs: int = 1) -> float:
        """What the mean relative difference over this many pairs may be."""
        quantile = float(special.stdtrit(self.freedom, (1 + CONFIDENCE) / 2))
        return quantile * self.deviation * sqrt(2 / pairs)


def seed_spread(runs: Iterable[tuple[str, float | None]]) -> SeedSpread | None:
    """The spread of (cell, loss) pairs within cells, pooled; None where no cell has two. Diverged runs have no loss."""
    by_cell: dict[str, list[float]] = {}
    for cell, loss in runs:
        if loss is not None:
            by_cell.setdefault(cell, []).append(loss)
    squares, freedom = 0.0, 0
    for losses in by_cell.values():
        mean = fmean(losses)
        squares += sum((loss / mean - 1) ** 2 for loss in losses)
        freedom += len(losses) - 1
    return SeedSpread(sqrt(squares / freedom), freedom) if freedom else None
