"""Looks at the evidence after each seed, with the error rate kept: a group-sequential design for t tests.

Seeds are added to an undecided pair one at a time, from a first number to a last, and it is looked at after each. Each
look spends a part of alpha, by the spending function of Lan and DeMets (1983, Biometrika 70:659) that is like O'Brien
and Fleming's boundaries: a*(t) = 2 - 2 Phi(z_{a/2} / sqrt t) at the share t of the last number of seeds; little early,
most at the end. The boundaries are those of a normal mean with known variance, by the recursion of Armitage, McPherson
and Rowe (1969, J. R. Stat. Soc. A 132:235); t statistics are held against them by their significance levels (Pocock
1977, Biometrika 64:191; Jennison and Turnbull 2000, Group Sequential Methods, section 4.4). What comes out is a
sequential p value: the smallest alpha at which a boundary was crossed (Liu and Anderson 2008, J. Am. Stat. Assoc.
103:1621). It holds at whatever look one stops, so claims are adjusted for one another by Holm as ever.
`benchmarks/seeds_until_decided.py` simulates the rates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy import special

T_FACTOR = 1.5
"""On the p value. In simulations t statistics cross normal boundaries up to 1.2 times too often; the rest is margin."""
ALPHAS = np.concatenate([np.logspace(-8, -2, 61)[:-1], np.linspace(0.01, 0.999, 100)])
"""One-sided levels that boundaries are worked out for; between them they are interpolated."""
CELLS = 1600
"""Points that the distribution of a sum is worked out on."""
WIDTH = 8.5
"""Standard deviations of the last sum on either side of zero that they reach to."""


@dataclass(frozen=True)
class Looks:
    """A design: how many seeds there are at the first look and at the last; one more at each between."""

    first: int
    last: int

    def __call__(self, p_value: Callable[[np.ndarray], float], differences: np.ndarray) -> float:
        """The sequential p value of a one-sided test of differences in the order of their seeds; 1 before the first
        look. `p_value` is that of a test at one look."""
        sizes = range(self.first, min(len(differences), self.last) + 1)
        levels = nominal_levels(self.first, self.last)
        spent = [_alpha_of(p_value(differences[:size]), levels[look]) for look, size in enumerate(sizes)]
        return min(1.0, T_FACTOR * min(spent, default=1.0))


def _alpha_of(p_value: float, levels: np.ndarray) -> float:
    """The smallest of ALPHAS' range at which a look's boundary is crossed; 1 where none is."""
    if p_value >= levels[-1]:
        return 1.0
    logarithms = np.log(np.maximum(levels, 1e-300))
    return float(np.exp(np.interp(np.log(max(p_value, 1e-300)), logarithms, np.log(ALPHAS))))


@cache
def nominal_levels(first: int, last: int) -> np.ndarray:
    """By [look, one of ALPHAS], the p value at which a one-sided test stops: its boundary's significance level."""
    reach = WIDTH * np.sqrt(last)
    at, step = np.linspace(-reach, reach, CELLS, retstep=True)
    kernel = np.exp(-((at[:, None] - at[None]) ** 2) / 2) / np.sqrt(2 * np.pi) * step
    density = np.exp(-(at**2) / (2 * first)) / np.sqrt(2 * np.pi * first)
    going = np.repeat(density[:, None], len(ALPHAS), axis=1)  # of the sum, of what has not stopped
    levels, before = [], np.zeros(len(ALPHAS))
    for size in range(first, last + 1):
        if size > first:
            going = kernel @ going
        spent = 2 * special.ndtr(special.ndtri(ALPHAS / 2) / np.sqrt(size / last))
        boundary = _upper_quantile(at, going * step, spent - before)
        levels.append(special.ndtr(-boundary / np.sqrt(size)))
        kept = np.clip((boundary - at[:, None]) / step + 0.5, 0, 1)  # a cell that the boundary cuts goes on in part
        going, before = going * kept, spent
    return np.array(levels)


def _upper_quantile(at: np.ndarray, mass: np.ndarray, tail: np.ndarray) -> np.ndarray:
    """By column, the point above which so much of the mass lies."""
    step = at[1] - at[0]
    above = np.cumsum(mass[::-1], axis=0)[::-1]  # from each cell's lower edge on
    found = np.empty(mass.shape[1])
    for column in range(mass.shape[1]):
        logarithms = np.log(np.maximum(above[::-1, column], 1e-300))
        found[column] = np.interp(np.log(max(tail[column], 1e-300)), logarithms, at[::-1] - step / 2)
    return found
