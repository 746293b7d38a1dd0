"""Loss as a function of what was spent: smoothed curves, and where two of them meet.

A run's curve goes through its validation losses (or, where it has too few, its training losses averaged over
windows), made monotone by isotonic regression (pool adjacent violators) and interpolated by a monotone cubic (PCHIP)
in the logarithm of the resource: neither invents a minimum that was not measured. Where runs were planned for several
lengths the curve goes through their ends instead, and the loss is interpolated in its logarithm, too: losses of planned
ends follow a power law of what was spent but for a constant (arXiv 2203.15556).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.interpolate import PchipInterpolator
from scipy.optimize import isotonic_regression

WINDOWS = 40
"""Points that a curve of training losses is averaged to."""
FEWEST = 3
"""Points that make a curve."""
FEWEST_ENDS = 2
"""Ends of planned runs that make one."""
FINE = 512
"""Points on which a crossing is looked for."""


@dataclass(frozen=True)
class Curve:
    """A smoothed loss curve over one resource."""

    resource: np.ndarray
    """Spent so far, increasing, positive."""
    loss: np.ndarray
    """Never increasing."""
    of_ends: bool = False
    """Whether its points are ends of runs planned for their lengths, interpolated in the logarithm of the loss."""

    @property
    def end(self) -> float:
        """The most that was spent."""
        return float(self.resource[-1])

    @property
    def start(self) -> float:
        """The least that was spent at a known loss."""
        return float(self.resource[0])

    def at(self, resource: float) -> float:
        """The loss after spending `resource`, which lies within the curve."""
        return float(self._losses(np.log(resource)))

    def reaches(self, loss: float) -> float | None:
        """What was spent when the curve first came down to `loss`; None where it never did, or began below it."""
        if self.loss[-1] > loss or self.loss[0] < loss:
            return None
        fine, losses = self._fine
        first = int(np.argmax(losses <= loss))
        if first == 0:
            return self.start
        left, right = losses[first - 1], losses[first]
        share = (left - loss) / (left - right)
        return float(np.exp(fine[first - 1] + share * (fine[first] - fine[first - 1])))

    @cached_property
    def _fine(self) -> tuple[np.ndarray, np.ndarray]:
        """Logarithms of the resource on FINE points, and the loss there."""
        fine = np.linspace(np.log(self.start), np.log(self.end), FINE)
        losses = np.minimum.accumulate(self._losses(fine))
        losses[-1] = self.loss[-1]
        return fine, losses

    def _losses(self, log_resource: np.ndarray | float) -> np.ndarray:
        found = self._interpolator(log_resource)
        return np.exp(found) if self.of_ends else found

    @cached_property
    def _interpolator(self) -> PchipInterpolator:
        return PchipInterpolator(np.log(self.resource), np.log(self.loss) if self.of_ends else self.loss)


def smooth(resource: np.ndarray, loss: np.ndarray, *, of_ends: bool = False) -> Curve | None:
    """The curve through measured losses; None with fewer than FEWEST (FEWEST_ENDS) of them that can be used."""
    usable = np.isfinite(resource) & np.isfinite(loss) & (resource > 0)
    resource, loss = resource[usable], loss[usable]
    rising = np.diff(resource, prepend=0.0) > 0
    resource, loss = resource[rising], loss[rising]
    if len(loss) < (FEWEST_ENDS if of_ends else FEWEST):
        return None
    return Curve(resource, isotonic_regression(loss, increasing=False).x, of_ends)


def averaged(resource: np.ndarray, loss: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Training losses averaged over WINDOWS windows of equally many steps, each at its mean resource.

    The windows are those of the losses, whatever is known of the resource: it is NaN in a window where it is not.
    """
    known = np.flatnonzero(np.isfinite(loss))
    parts = np.array_split(known, min(WINDOWS, len(known))) if len(known) else []
    return np.array([resource[part].mean() for part in parts]), np.array([loss[part].mean() for part in parts])
