"""Looks at the evidence after each seed, with the error rate kept: a group-sequential design for t tests.

Seeds are added to an undecided pair one at a time, from a first number to a last, and it is looked at after each. Each
look spends a part of alpha, by the spending function of Lan and DeMets (1983, Biometrika 70:659) that is like O'Brien
and Fleming's boundaries: a*(t) = 2 - 2 Phi(z_{a/2} / sqrt t) at the share t of the last number of seeds; little early,
most at the end. The boundaries are those of the t statistics themselves, for normal differences of unknown variance
(Jennison and Turnbull 1991, Biometrika 78:133; 2000, Group Sequential Methods, section 11.5): nothing is tuned.

They are worked out by integration, one number at a time. At the margin the mean is 0, so the t statistics up to n seeds
are independent of the sum of squares Q_n (Basu's theorem). The next difference x enters as y = x / sqrt(Q_n), and
y sqrt(n) has Student's t distribution with n degrees of freedom, whatever the t statistics were. So they are a Markov
chain, and the recursion of Armitage, McPherson and Rowe (1969, J. R. Stat. Soc. A 132:235) holds for them.

What comes out is a sequential p value: the smallest alpha at which a boundary was crossed (Liu and Anderson 2008,
J. Am. Stat. Assoc. 103:1621). It holds at whatever look one stops, so claims are adjusted for one another by Holm.
`benchmarks/seeds_until_decided.py` simulates the rates, also where differences are not normal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy import special

ALPHAS = np.concatenate([np.logspace(-6, -2, 41)[:-1], np.linspace(0.01, 0.999, 100)])
"""One-sided levels that boundaries are worked out for; between them they are interpolated."""
CELLS = 400
"""Cells that the distribution of a t statistic is worked out on."""
EDGES = np.sinh(np.linspace(-np.arcsinh(24), np.arcsinh(24), CELLS + 1)) / 2
"""Of the cells, in arcsinh(t / sqrt(n - 1)): narrow where t is small, and wide enough for one degree of freedom."""
MIDDLES = (EDGES[:-1] + EDGES[1:]) / 2


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
        return min(
            (_alpha_of(p_value(differences[:size]), levels[look]) for look, size in enumerate(sizes)), default=1.0
        )


def _alpha_of(p_value: float, levels: np.ndarray) -> float:
    """The smallest of ALPHAS' range at which a look's boundary is crossed; 1 where none is."""
    if p_value >= levels[-1]:
        return 1.0
    return float(np.exp(np.interp(np.log(max(p_value, 1e-300)), np.log(np.maximum(levels, 1e-300)), np.log(ALPHAS))))


def spent_by(share: float) -> np.ndarray:
    """By one of ALPHAS, what of it may be spent up to this share of the last number of seeds."""
    return 2 * special.ndtr(special.ndtri(ALPHAS / 2) / np.sqrt(share))


@cache
def nominal_levels(first: int, last: int) -> np.ndarray:
    """By [look, one of ALPHAS], the p value at which a one-sided t test stops: its boundary's significance level.

    `first` is 2 or more.
    """
    going = np.repeat(-np.diff(_p_values(EDGES, first))[:, None], len(ALPHAS), axis=1)  # what has not stopped, by cell
    levels, before = [], np.zeros(len(ALPHAS))
    for size in range(first, last + 1):
        if size > first:
            going = _next_seed(size - 1) @ going
        tail = spent_by(size / last) - before
        above = np.cumsum(going[::-1], axis=0)[::-1]  # from each cell's lower edge on
        levels.append(np.maximum(tail, _p_values(_upper_quantile(above, tail), size)))
        going, before = np.clip(above - tail, 0, going), before + tail
    return np.array(levels)


def _p_values(at: np.ndarray, size: int) -> np.ndarray:
    """One-sided p values of t statistics of so many seeds, given as arcsinh(t / sqrt(size - 1))."""
    return special.stdtr(size - 1, -np.sqrt(size - 1) * np.sinh(at))


def _upper_quantile(above: np.ndarray, tail: np.ndarray) -> np.ndarray:
    """By column, the point above which so much of the mass lies; the last edge where even the last cell has more."""
    ends = np.log(np.maximum(np.vstack([above, np.zeros(above.shape[1])]), 1e-300))
    wanted = np.log(np.maximum(tail, 1e-300))
    return np.array([np.interp(one, column[::-1], EDGES[::-1]) for one, column in zip(wanted, ends.T, strict=True)])


def _next_seed(size: int) -> np.ndarray:
    """By [cell after one seed more, cell with `size` seeds], the probability to come from the one to the other."""
    edges = EDGES[CELLS // 2 : -1]
    upper = _exceeds(edges, size)
    lower = 1 - upper[:0:-1, ::-1]  # the mirror image
    certain = np.ones((1, CELLS))
    return -np.diff(np.vstack([certain, lower, upper, 0 * certain]), axis=0)


def _exceeds(edges: np.ndarray, size: int) -> np.ndarray:
    """By [edge, cell], the probability that the next t statistic lies above an edge, which is 0 or more.

    With Q_n = 1, u = tanh of the cell's middle and h = sinh of the edge: the mean is u / sqrt(n) and the sum of squares
    about it 1 - u^2. The next t lies above the edge where the sum sqrt(n) u + y is positive and a y^2 + 2 b y + c > 0:
    between two roots where a < 0, above the upper one otherwise.
    """
    n, h2, u = size, np.sinh(edges)[:, None] ** 2, np.tanh(MIDDLES)[None]
    a, b = 1 - n * h2, np.sqrt(n) * u * (1 + h2)
    c = n * u**2 * (1 + h2) - (n + 1) * h2
    square = (n + 1) * h2 * (1 + n * u**2 - n * h2 / np.cosh(MIDDLES) ** 2)
    root = np.sqrt(np.maximum(square, 0))
    with np.errstate(divide="ignore", invalid="ignore"):
        low = np.where(u > 0, -c / (b + root), (root - b) / a)
        high = np.where(a < 0, -(b + root) / a, np.inf)
    never = (a <= 0) & ((u < 0) | (square < 0))
    reached = special.stdtr(n, np.sqrt(n) * high) - special.stdtr(n, np.sqrt(n) * low)
    return np.where(never, 0.0, reached)
