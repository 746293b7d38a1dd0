"""When a training run ended without a sane loss: one definition for Octavo's own runs and for imported logs.

A run has diverged when its last training lines have no loss (NaN, infinite, zero or below, or left out, as Megatron-LM
does for skipped iterations), when its last validation wrote a loss that is none, or when its loss ends far above where
it had been.
"""

from __future__ import annotations

import numpy as np

BLOW_UP = 1.2
"""A median loss of the last tenth above this many times that of the best tenth is a loss that blew up."""
FEWEST = 5
"""Lines whose median is taken, where a tenth is fewer."""
SPREADS = 4
"""And by more than so many standard errors of these medians, so that a few noisy lines are none."""


def sane(loss: np.ndarray) -> np.ndarray:
    """Losses, with NaN for what is none: cross-entropy is finite and above zero."""
    loss = np.asarray(loss, dtype=float)
    return np.where(np.isfinite(loss) & (loss > 0), loss, np.nan)


def diverged(step: np.ndarray, loss: np.ndarray) -> bool:
    """Whether a run's training lines end without a sane loss. `step` is increasing; `loss` is NaN on a line without.

    Some logs write losses less often than other numbers: the end has none if it is at least as long as the usual
    distance of two losses.
    """
    loss = sane(loss)
    there = np.flatnonzero(np.isfinite(loss))
    if not len(there):
        return len(loss) > 0
    usual = np.median(np.diff(step[there])) if len(there) > 1 else 1
    return bool(step[-1] - step[there[-1]] >= max(usual, 1)) or _blew_up(loss[there])


def validation_lost(step: np.ndarray, loss: np.ndarray) -> bool:
    """Whether the validations of a run end without a sane loss: `loss` where one was written, at increasing `step`.

    Some tables write NaN where nothing was validated: there NaN stands between sane losses, and the end has none only
    if it is at least as long as their usual distance. Without any sane loss nothing shows that any was meant.
    """
    there = np.flatnonzero(np.isfinite(sane(loss)))
    if not len(there) or there[-1] == len(loss) - 1:
        return False
    if len(there) == there[-1] + 1:
        return True
    usual = np.median(np.diff(step[there])) if len(there) > 1 else step[there[0]]
    return bool(step[-1] - step[there[-1]] >= usual)


def _blew_up(loss: np.ndarray) -> bool:
    length = max(FEWEST, len(loss) // 10)
    if len(loss) < 2 * length:
        return False
    ends = len(loss) - length * np.arange(len(loss) // length)
    medians = np.array([np.median(loss[end - length : end]) for end in ends])
    error = 1.4826 * np.median(np.abs(np.diff(loss))) / np.sqrt(2 * length)
    return bool(medians[0] > BLOW_UP * medians.min() and medians[0] - medians.min() > SPREADS * error)
