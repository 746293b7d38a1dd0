"""Learning-rate schedules, as runs logged them, and the bias of a loss that is read before its schedule is over.

While the rate is high a loss stays above what it falls to when the rate decays (WSD: arXiv 2404.06395; a run planned
for half the length is better there than a longer one: Hoffmann et al. 2022, arXiv 2203.15556, section 3). So a run that
is read while its rate still is to decay looks worse than one planned for that length, and needs more of everything for
a loss. The bias has a known sign: what contradicts it holds all the more, and what agrees with it says nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

SAME = 0.01
"""Two runs are read at the same point of their schedules if their rates are no further apart, over their peaks."""


def undecayed(step: np.ndarray, rate: np.ndarray) -> np.ndarray:
    """At each step the highest rate from there on, over the peak: 1 before the decay begins, and all along without one.

    A rate that was not logged may decay from the first step to the last, as most do: it is taken to.
    """
    known = np.isfinite(rate)
    if not known.any() or rate[known].max() <= 0:
        return 1 - step / step[-1] if len(step) else np.empty(0)
    every = np.interp(step, step[known], rate[known])
    return np.maximum.accumulate(every[::-1])[::-1] / every.max()


@dataclass(frozen=True)
class Bias:
    """Where the two runs of a pair were read in their schedules, mean over seeds."""

    cell: float
    """How high the cell's rate still goes, over its peak."""
    against: float

    @property
    def sign(self) -> Literal[-1, 0, 1]:
        """1: the cell looks worse than it is (its loss and its needs are too high), -1: the other does, 0: neither."""
        apart = self.cell - self.against
        return 1 if apart > SAME else -1 if apart < -SAME else 0
