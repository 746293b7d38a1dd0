"""How loss falls with compute: L = E + sum_j exp(a_j - g_j z_j), with intervals that say what the data leave open.

Two forms share this shape. The *frontier* form has one term, in the FLOPs: L(C) = E + A C^-gamma. The *parameters and
tokens* form has two, L(N, D) = E + A N^-alpha + B D^-beta (Hoffmann et al. 2022, arXiv 2203.15556); it is taken where
an architecture's tokens per parameter vary so that FLOPs alone do not say the loss.

E, the loss that no compute removes, decides every extrapolation, and a ladder hardly tells it. A bootstrap over seeds
alone is therefore too narrow. Here each draw of the bootstrap passes these levels:

1. noise: what a seed changes and what a rung deviates from the form, as likely as the spread of the seeds and the
   distances from the fit make it;
2. form: E from a grid, each value as likely as it explains the data, the same for both architectures but for a small
   difference; beyond the largest rung the exponent changes by a few per cent;
3. coefficients, refitted to data with that noise. The refit's distribution is taken in the linear limit, so that
   thousands of draws need one fit per value of E, and all of those are solved at once (Levenberg-Marquardt).

Within the ladder the frontier form only says how a curve goes from rung to rung: it is drawn through the rungs' own
means, each with its noise, so that a form that is wrong costs nothing there. Beyond the last rung what the form left
over fades within the distance of one rung.

Seeds are not resampled as they are: an interval from three of them could not reach beyond them. Runs far from the fit
count less, as in Huber's loss of the logarithm of the loss (Hoffmann et al. 2022, equation 3).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from octavo.errors import OctavoError
from octavo.scaling.ladder import Row, Rung, architectures, rungs

DRAWS = 4000
FEWEST_RUNGS = 3
LIMIT = 300.0
"""Times the compute of the largest rung up to which back-tests of published ladders support an extrapolation."""

CELLS = 96
"""Values of E."""
E_MOST = 0.95
"""Of the lowest loss: the largest E. The prior is Beta(2, 2) of E's share in the lowest loss: neither none nor all."""
E_APART = 0.04
"""Scale of the difference of two architectures' E, of the lowest loss (Laplace's distribution)."""
DRIFT = 0.06
"""Standard deviation of the relative change of an exponent beyond the largest rung; half of its variance is common to
both architectures. A dense ladder fitted to 3e20 FLOPs erred by 0.5 to 1.1 % of the loss at 3 to 300 times as many."""
NOISE, NOISE_SPREAD = 0.003, 1.0
"""What the logarithm of the loss spreads by from seed to seed where nothing is measured: median, and the standard
deviation of its logarithm."""
DEVIATION = 2e-4
"""Scale (half normal) of the deviation of a rung from the form."""
SIGMAS = np.exp(np.linspace(math.log(3e-5), math.log(0.1), 80))
DEVIATIONS = DEVIATION * np.array([0.0, 0.5, 1.0, 1.5, 2.0, 3.0])
EXPONENT = (math.log(0.15), 1.0)
"""Prior of log gamma: mean, standard deviation."""
EXPONENTS = (math.log(0.33), 0.35)
"""Prior of log alpha and log beta, about Hoffmann's 0.34 and 0.28."""
SHARE = 1.5
"""Prior standard deviation of the logarithm of each term about half of the loss above E (two terms only)."""
HUBER = 3.0
"""Standard deviations from which on a run counts less."""
OFF_PATH = 0.1
"""Standard deviation of log(tokens / parameters) about its trend over compute from which on two terms are needed."""


@dataclass(frozen=True)
class Curve:
    """Draws of one architecture's loss over the compute of a run, on the ladder's own path of size and tokens.

    `exponents` and `beyond` (within the ladder, beyond its largest rung) and `logs` are draws x terms; `offset` and
    `slope` give each term's z from the logarithm of the FLOPs.
    """

    rungs: tuple[Rung, ...]
    path: tuple[Rung, ...]
    """The rungs of which no smaller one has a lower loss."""
    irreducible: np.ndarray
    logs: np.ndarray
    exponents: np.ndarray
    beyond: np.ndarray
    offset: np.ndarray
    slope: np.ndarray
    knots: np.ndarray
    """Draws x path: by what, in logarithms, the path's rungs lie above the form."""
    _reached: dict[float, np.ndarray] = field(default_factory=dict, repr=False, compare=False)

    @property
    def first(self) -> float:
        """Logarithm of the FLOPs of the path's smallest rung."""
        return self.path[0].log_flops

    @property
    def last(self) -> float:
        """Logarithm of the FLOPs of the path's largest rung."""
        return self.path[-1].log_flops

    @property
    def loss_range(self) -> tuple[float, float]:
        """The lowest and the highest mean loss of the path's rungs."""
        means = [math.exp(rung.log_losses.mean()) for rung in self.path]
        return min(means), max(means)

    def loss(self, log_flops: float | np.ndarray) -> np.ndarray:
        """The loss that a run of so many FLOPs is expected to end with: one value per draw."""
        z = self.offset + self.slope * np.asarray(log_flops)[..., None]
        end = self.offset + self.slope * self.last
        fall = self.exponents * np.minimum(z, end) + self.beyond * np.maximum(z - end, 0.0)
        return (self.irreducible + np.exp(self.logs - fall).sum(-1)) * np.exp(self._left_over(log_flops))

    def _left_over(self, log_flops: float | np.ndarray) -> np.ndarray:
        """The knots, joined by straight lines that fade to zero one rung's distance beyond both ends."""
        x = np.array([rung.log_flops for rung in self.path])
        x = np.array([2 * x[0] - x[1], *x, 2 * x[-1] - x[-2]])
        y = np.pad(self.knots, ((0, 0), (1, 1)))
        inside = np.clip(np.broadcast_to(log_flops, len(y)), x[0], x[-1])
        at = np.clip(np.searchsorted(x, inside) - 1, 0, len(x) - 2)
        every = np.arange(len(y))
        share = (inside - x[at]) / (x[at + 1] - x[at])
        return y[every, at] * (1 - share) + y[every, at + 1] * share

    def log_flops(self, loss: float | np.ndarray) -> np.ndarray:
        """The compute that reaches a loss (or one loss per draw); infinite where none within 1e6 times LIMIT does."""
        if isinstance(loss, np.ndarray):
            return self._reach(loss)
        if loss not in self._reached:  # asked for by axis, by estimate and by warning
            self._reached[loss] = self._reach(loss)
        return self._reached[loss]

    def _reach(self, loss: float | np.ndarray) -> np.ndarray:
        low = np.full(len(self.irreducible), self.first - 30.0)
        high = np.full(len(self.irreducible), self.last + math.log(LIMIT * 1e6))
        never = self.loss(high) > loss
        for _ in range(40):  # to 1e-10 of the logarithm
            middle = (low + high) / 2
            above = self.loss(middle) > loss
            low, high = np.where(above, middle, low), np.where(above, high, middle)
        return np.where(never, np.inf, (low + high) / 2)


@dataclass(frozen=True)
class Fit:
    """What a ladder says of its architectures; every array holds one value per draw, the same draw in each."""

    curves: dict[str, Curve]
    noise: np.ndarray
    """Standard deviation of the logarithm of one run's loss over seeds."""
    down_weighted: tuple[Row, ...]
    """Runs so far from the fit that they count for less than half."""

    @property
    def terms(self) -> int:
        """1: the frontier form; 2: parameters and tokens."""
        return next(iter(self.curves.values())).logs.shape[1]


def fit(rows: Sequence[Row], *, draws: int = DRAWS, seed: int = 0) -> Fit:
    """Fit the ladders of one architecture or of two, which then share E but for a small difference.

    The same rows in any order give the same draws. Raises OctavoError for fewer than FEWEST_RUNGS rungs.
    """
    ladders = {name: _ladder(rows, name) for name in architectures(rows)}
    if not 1 <= len(ladders) <= 2:
        raise OctavoError(
            f"the rows are of {len(ladders)} architectures: {', '.join(ladders)}", expected="one or two at a time"
        )
    paths = {name: _path(ladder) for name, ladder in ladders.items()}
    terms = 2 if any(_off_path(ladder) for ladder in ladders.values()) else 1
    centre = float(np.mean([rung.log_flops for ladder in ladders.values() for rung in ladder]))
    weights = [np.ones(len(rung.rows)) for ladder in ladders.values() for rung in ladder]
    points, solved = _solve_all(ladders, terms, centre, weights)
    for _ in range(6):
        lighter = _huber(ladders, points, solved)
        if all(np.allclose(a, b, atol=0.01) for a, b in zip(lighter, weights, strict=True)):
            break
        weights = lighter
        points, solved = _solve_all(ladders, terms, centre, weights)
    rng = np.random.default_rng(seed)
    noise, drawn = _draw(points, solved, draws, rng)
    common = rng.standard_normal(draws)
    curves = {}
    for (name, ladder), of, (irreducible, theta, off) in zip(ladders.items(), points.of, drawn, strict=True):
        offset, slope = _along(paths[name], terms, centre)
        exponents = np.exp(theta[:, terms:])
        drift = DRIFT * (common + rng.standard_normal(draws)) / math.sqrt(2)
        beyond = exponents * np.exp(drift)[:, None]
        knots = np.zeros((draws, len(paths[name])))
        if terms == 1:  # with two, rungs beside the path tell of it too
            on_path = [ladder.index(rung) for rung in paths[name]]
            z = of.z[on_path, 0]
            form = irreducible[:, None] + np.exp(theta[:, :1] - exponents * z)
            knots = np.log(of.loss[on_path] / form) + off[:, on_path]
        curves[name] = Curve(
            ladder, paths[name], irreducible, theta[:, :terms], exponents, beyond, offset, slope, knots
        )  # fmt: skip
    every = [row for ladder in ladders.values() for rung in ladder for row in rung.rows]
    light = np.concatenate(weights) < 0.5
    return Fit(curves, noise, tuple(row for row, less in zip(every, light, strict=True) if less))


def _ladder(rows: Sequence[Row], architecture: str) -> tuple[Rung, ...]:
    found = rungs(rows, architecture)
    if len(found) < FEWEST_RUNGS:
        raise OctavoError(
            f"the architecture {architecture} has {len(found)} rung{'s' * (len(found) > 1)}",
            expected=f"at least {FEWEST_RUNGS} sizes or lengths of each architecture",
            fix="train more sizes: two points fit any E",
        )
    return found


def _path(ladder: Sequence[Rung]) -> tuple[Rung, ...]:
    """The rungs of which no smaller one has a lower loss; the first and at least one more, also where loss rises."""
    best, path = math.inf, []
    for rung in ladder:
        if (mean := rung.log_losses.mean()) < best:
            best = mean
            path.append(rung)
    return tuple(path) if len(path) > 1 else tuple(ladder)


def _off_path(ladder: Sequence[Rung]) -> bool:
    sizes, tokens = _column(ladder, "active_parameters"), _column(ladder, "tokens")
    if sizes is None or tokens is None:
        return False
    x = np.array([rung.log_flops for rung in ladder])
    ratio = tokens - sizes
    trend = np.polyval(np.polyfit(x, ratio, 1), x) if np.ptp(x) > 0 else ratio.mean()
    return float(np.std(ratio - trend)) > OFF_PATH


def _column(ladder: Sequence[Rung], column: str) -> np.ndarray | None:
    """Mean logarithms of a column by rung; None where a rung has none."""
    means = [rung.log_mean(column) for rung in ladder]
    return None if any(mean is None for mean in means) else np.array(means, float)


def _along(path: Sequence[Rung], terms: int, centre: float) -> tuple[np.ndarray, np.ndarray]:
    """Each term's z = offset + slope x log FLOPs on the path."""
    if terms == 1:
        return np.array([-centre]), np.array([1.0])
    x = np.array([rung.log_flops for rung in path])
    lines = [np.polyfit(x, z, 1) for z in _z(path, 2, centre).T]
    slopes = np.clip([line[0] for line in lines], 0.05, 0.95)
    return np.array([np.mean(z - s * x) for z, s in zip(_z(path, 2, centre).T, slopes, strict=True)]), slopes


def _z(ladder: Sequence[Rung], terms: int, centre: float) -> np.ndarray:
    """Rungs x terms: what the terms fall with, about zero so that coefficients are of the size of losses."""
    if terms == 1:
        return np.array([[rung.log_flops - centre] for rung in ladder])
    sizes, tokens = _column(ladder, "active_parameters"), _column(ladder, "tokens")
    if sizes is None or tokens is None:
        raise OctavoError(
            "tokens per parameter vary within one architecture, and rows of another have none",
            expected="active_parameters and tokens in every row",
        )
    return np.stack([sizes - centre / 2, tokens - centre / 2], 1)


@dataclass(frozen=True)
class _Of:
    """One architecture's rungs: z (rungs x terms), mean loss, and how many runs each counts as."""

    z: np.ndarray
    loss: np.ndarray
    runs: np.ndarray


@dataclass(frozen=True)
class _Points:
    of: list[_Of]
    squares: float
    """Sum of squares of log losses about their rung's mean."""
    freedom: float

    @property
    def spread(self) -> float:
        """A first estimate of the noise of one run."""
        return math.sqrt((self.squares + 2 * NOISE**2) / (self.freedom + 2))


def _points(ladders: dict[str, tuple[Rung, ...]], terms: int, centre: float, weights: Sequence[np.ndarray]) -> _Points:
    found, squares, freedom, at = [], 0.0, 0.0, 0
    for ladder in ladders.values():
        means, runs = [], []
        for rung in ladder:
            weight, logs = weights[at], rung.log_losses
            at += 1
            mean = float((weight * logs).sum() / weight.sum())
            squares += float((weight * (logs - mean) ** 2).sum())
            freedom += float(weight.sum()) * (1 - 1 / len(logs))
            means.append(math.exp(mean))
            runs.append(weight.sum())
        found.append(_Of(_z(ladder, terms, centre), np.array(means), np.array(runs)))
    return _Points(found, squares, freedom)


def _solve_all(
    ladders: dict[str, tuple[Rung, ...]], terms: int, centre: float, weights: Sequence[np.ndarray]
) -> tuple[_Points, list[_Solved]]:
    points = _points(ladders, terms, centre, weights)
    return points, [_solve(one, points.spread) for one in points.of]


@dataclass(frozen=True)
class _Solved:
    """The best coefficients for each value of E (cells), theta = (a_j, log g_j); relative residuals, their slopes."""

    irreducible: np.ndarray
    theta: np.ndarray
    residual: np.ndarray
    jacobian: np.ndarray
    penalty: np.ndarray
    precision: np.ndarray
    prior: np.ndarray
    """Logarithm of the prior of each cell, and of what makes it flat in the losses of the first and the last rung."""


def _solve(of: _Of, spread: float) -> _Solved:
    """Least squares of relative residuals with weak priors, by Levenberg-Marquardt, for all values of E at once."""
    terms = of.z.shape[1]
    share = (np.arange(CELLS) + 0.5) / CELLS * E_MOST
    irreducible = share * of.loss.min()
    above = of.loss - irreducible[:, None]
    root = np.sqrt(of.runs) / spread
    if terms == 1:
        theta, precision = _straight_lines(of, above), np.array([0.0, EXPONENT[1] ** -2])
        prior_mean = np.broadcast_to([0.0, EXPONENT[0]], theta.shape)
    else:
        half = np.log(above.mean(1) / 2)[:, None]
        theta = np.hstack([half, half, np.full((CELLS, 2), EXPONENTS[0])])
        precision = np.repeat([SHARE**-2, EXPONENTS[1] ** -2], 2)
        prior_mean = theta.copy()

    def evaluate(theta: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        term = np.exp(theta[:, None, :terms] - np.exp(theta[:, None, terms:]) * of.z)
        residual = (above - term.sum(2)) / of.loss
        jacobian = np.concatenate([term, -term * np.exp(theta[:, None, terms:]) * of.z], 2) / of.loss[:, None]
        cost = ((root * residual) ** 2).sum(1) + (precision * (theta - prior_mean) ** 2).sum(1)
        return residual, jacobian, cost

    damping = np.full(CELLS, 1e-3)
    residual, jacobian, cost = evaluate(theta)
    for _ in range(60):
        scaled = jacobian * root[:, None]
        hessian = np.einsum("cnp,cnq->cpq", scaled, scaled) + np.diag(precision)
        gradient = np.einsum("cnp,cn->cp", scaled, root * residual) - precision * (theta - prior_mean)
        ridge = damping[:, None] * np.einsum("cpp->cp", hessian) + 1e-9
        step = np.linalg.solve(hessian + ridge[:, :, None] * np.eye(2 * terms), gradient[..., None])[..., 0]
        trial = theta + np.clip(step, -1.0, 1.0)
        trial_residual, trial_jacobian, trial_cost = evaluate(trial)
        better = trial_cost < cost
        gain = np.where(better, cost - trial_cost, 0.0)
        theta = np.where(better[:, None], trial, theta)
        residual = np.where(better[:, None], trial_residual, residual)
        jacobian = np.where(better[:, None, None], trial_jacobian, jacobian)
        cost = np.where(better, trial_cost, cost)
        damping = np.clip(np.where(better, damping / 10, damping * 10), 1e-9, 1e9)
        if gain.max() < 1e-5 and (better | (damping > 1)).all():
            break
    penalty = (precision * (theta - prior_mean) ** 2).sum(1)
    prior = np.log(share * (1 - share))
    if terms == 1:
        a, log_g, z = theta[:, 0], theta[:, 1], of.z[:, 0]
        prior = prior + 2 * a - np.exp(log_g) * (z.min() + z.max()) + log_g
    return _Solved(irreducible, theta, residual, jacobian, penalty, precision, prior)


def _straight_lines(of: _Of, above: np.ndarray) -> np.ndarray:
    """Where the search starts with one term: log(L - E) = a - g z by weighted least squares."""
    weight, log, z = of.runs * (above / of.loss) ** 2, np.log(above), of.z[:, 0]
    total = weight.sum(1)
    middle, mean = (weight * z).sum(1) / total, (weight * log).sum(1) / total
    apart = z - middle[:, None]
    slope = -(weight * apart * (log - mean[:, None])).sum(1) / (weight * apart**2).sum(1)
    exponent = np.maximum(slope, 0.005)
    return np.stack([mean + exponent * middle, np.log(exponent)], 1)


def _huber(ladders: dict[str, tuple[Rung, ...]], points: _Points, solved: Sequence[_Solved]) -> list[np.ndarray]:
    """Each run's weight, by rung: 1, or less where it lies more than HUBER robust standard deviations off the fit."""
    off = []
    for ladder, of, one in zip(ladders.values(), points.of, solved, strict=True):
        cost = (of.runs * one.residual**2).sum(1) / points.spread**2 + one.penalty
        fitted = np.log(of.loss * (1 - one.residual[np.argmin(cost)]))
        off += [rung.log_losses - value for rung, value in zip(ladder, fitted, strict=True)]
    every = np.concatenate(off)
    free = len(every) - sum(one.theta.shape[1] + 1 for one in solved)
    if free < 3:  # too few to tell a run that is off from a form that is
        return [np.ones(len(rung)) for rung in off]
    scale = 1.4826 * float(np.median(np.abs(every))) * math.sqrt(len(every) / free)
    return [np.minimum(1.0, HUBER * scale / np.maximum(np.abs(rung), 1e-12)) for rung in off]


def _draw(
    points: _Points, solved: Sequence[_Solved], draws: int, rng: np.random.Generator
) -> tuple[np.ndarray, list[tuple[np.ndarray, np.ndarray, np.ndarray]]]:
    """Draws of the noise of a run; of each architecture those of E, of theta, and of the noise of its rungs."""
    deviation, sigma = (grid.ravel() for grid in np.meshgrid(DEVIATIONS, SIGMAS, indexing="ij"))
    likely, information = [], []
    for of, one in zip(points.of, solved, strict=True):
        variance = sigma[:, None] ** 2 / of.runs + deviation[:, None] ** 2
        squares = (1 / variance) @ (one.residual**2).T + one.penalty
        outer = np.einsum("cnp,cnq->ncpq", one.jacobian, one.jacobian)
        known = np.tensordot(1 / variance, outer, 1) + np.diag(one.precision + 1e-9)
        size = np.linalg.slogdet(known)[1] + np.log(variance).sum(1)[:, None]
        likely.append(one.prior - 0.5 * (squares + size))
        information.append(known)
    tops = [one.max(1, keepdims=True) for one in likely]
    weights = [np.exp(one - top) for one, top in zip(likely, tops, strict=True)]
    if len(solved) == 2:
        lowest = min(of.loss.min() for of in points.of)
        near = np.exp(-np.abs(solved[0].irreducible[:, None] - solved[1].irreducible) / (E_APART * lowest))
    else:
        weights.append(np.ones((len(sigma), 1)))
        near = np.ones((CELLS, 1))
    evidence = np.log(((weights[0] @ near) * weights[1]).sum(1)) + sum(top[:, 0] for top in tops)
    evidence -= points.freedom * np.log(sigma) + points.squares / (2 * sigma**2)
    evidence -= 0.5 * (np.log(sigma / NOISE) / NOISE_SPREAD) ** 2
    evidence += np.log(np.gradient(DEVIATIONS))[np.searchsorted(DEVIATIONS, deviation)]
    evidence -= 0.5 * (deviation / DEVIATION) ** 2
    level = _systematic(np.exp(evidence - evidence.max()), draws, rng)
    cell = np.empty((2, draws), int)
    for one in np.unique(level):
        mine = np.flatnonzero(level == one)
        joint = weights[0][one][:, None] * near * weights[1][one]
        cell[:, mine] = np.unravel_index(_systematic(joint.ravel(), len(mine), rng), joint.shape)
    drawn = []
    for of, one, known, at in zip(points.of, solved, information, cell, strict=False):
        spread = np.sqrt(sigma[level, None] ** 2 / of.runs + deviation[level, None] ** 2)
        noise = rng.standard_normal(spread.shape)
        of_prior = rng.standard_normal((draws, len(one.precision))) * np.sqrt(one.precision)
        pull = np.einsum("dnp,dn->dp", one.jacobian[at], noise / spread) + of_prior
        refit = np.linalg.solve(known[level, at], pull[..., None])[..., 0]
        drawn.append((one.irreducible[at], one.theta[at] + refit, noise * spread))
    return np.hypot(sigma, deviation)[level], drawn


def _systematic(weights: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Indices drawn in proportion to weights, each as often as expected but for less than one draw."""
    total = np.cumsum(weights)
    return np.minimum(np.searchsorted(total, (np.arange(draws) + rng.random()) / draws * total[-1]), len(weights) - 1)
