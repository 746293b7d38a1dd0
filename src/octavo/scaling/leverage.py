"""Efficiency leverage: what the dense model needs over what the mixture needs for the same loss (arXiv 2507.17702).

In FLOPs, in device-hours and in cost. Hours and cost follow from FLOPs by what the ladder's runs took: between two
rungs in proportion of their logarithms, as step times change smoothly with size; beyond the largest rung somewhere
between no further change of the hours per FLOP and the change from the last rung but one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from octavo.errors import OctavoError, no_such
from octavo.scaling.fit import FEWEST_RUNGS, LIMIT, Curve, Fit, fit
from octavo.scaling.ladder import Row, architectures, rungs

SCHEMA_VERSION = 1
CONFIDENCE = 0.95
Axis = Literal["flops", "device_hours", "cost"]
AXES: tuple[Axis, ...] = ("flops", "device_hours", "cost")
WORDS = {"flops": "FLOPs", "device_hours": "device-hours", "cost": "money"}
FAR = 10.0
"""Times the compute of the largest rung from which on an extrapolation is warned of."""
UNEQUAL_TOKENS = 1.25
"""Ratio of tokens per parameter from which on it is warned of."""


@dataclass(frozen=True)
class Estimate:
    """The median of the draws with their interval; an end that is None is not bounded by the data."""

    value: float
    low: float | None
    high: float | None


def estimate(draws: np.ndarray, confidence: float = CONFIDENCE) -> Estimate | None:
    """Median and central interval of draws, infinite ones included; None where more than half are infinite."""
    ordered = np.sort(draws)
    last = len(ordered) - 1
    low, value, high = (float(ordered[round(q * last)]) for q in ((1 - confidence) / 2, 0.5, (1 + confidence) / 2))
    if not math.isfinite(value):
        return None
    return Estimate(value, low if math.isfinite(low) else None, high if math.isfinite(high) else None)


def choose(rows: Iterable[Row], dense: str | None = None, mixture: str | None = None) -> tuple[str, str | None]:
    """Which architecture is the dense one and which the mixture; no mixture where there is one architecture.

    What is not named is told by name, or by total over active parameters. Raises OctavoError where that does not tell.
    """
    rows = list(rows)
    names = architectures(rows)
    for option, name in (("--dense", dense), ("--mixture", mixture)):
        if name is not None and name not in names:
            raise no_such("architecture", name, names, where=option)
    if dense is not None and dense == mixture:
        raise OctavoError(f"{dense} is named as both architectures", expected="two that differ")
    if len(names) == 1:
        return names[0], None
    if dense is None:
        others = [name for name in names if name != mixture]
        if (dense := others[0] if len(others) == 1 else _dense(rows, others)) is None:
            raise OctavoError(
                "which architecture is the dense one cannot be told", expected=f"one of {', '.join(names)}",
                fix="name it with --dense, or give total_parameters and active_parameters",
            )  # fmt: skip
    others = [name for name in names if name != dense]
    if mixture is None and len(others) > 1:
        raise OctavoError(
            f"there are {len(names)} architectures: {', '.join(names)}",
            expected="two to compare",
            fix=f"name the one to hold against {dense} with --mixture",
        )
    return dense, mixture or others[0]


def _dense(rows: Sequence[Row], names: Sequence[str]) -> str | None:
    named = [name for name in names if "dense" in name.lower()]
    if len(named) == 1:
        return named[0]
    ratios = {
        name: np.median([
            row.total_parameters / row.active_parameters if row.total_parameters and row.active_parameters else math.nan
            for row in rows
            if row.architecture == name
        ])
        for name in names
    }  # fmt: skip
    ordered = sorted(ratios, key=lambda name: ratios[name])
    known = not any(math.isnan(ratio) for ratio in ratios.values())
    return ordered[0] if known and ratios[ordered[1]] > 1.2 * ratios[ordered[0]] else None


def leverage_draws(
    found: Fit, axis: Axis, loss: float, dense: str = "dense", mixture: str = "moe"
) -> np.ndarray | None:
    """The logarithm of the leverage at a loss, one value per draw; None where the rows do not hold the axis.

    Infinite where the dense model (minus: the mixture) does not reach the loss, and where neither does.
    """
    needs = [spent(found.curves[name], axis, found.curves[name].log_flops(loss)) for name in (dense, mixture)]
    if needs[0] is None or needs[1] is None:
        return None
    return np.where(np.isposinf(needs[0]), np.inf, needs[0] - np.where(np.isposinf(needs[0]), 0.0, needs[1]))


def spent(curve: Curve, axis: Axis, log_flops: np.ndarray) -> np.ndarray | None:
    """The logarithm of what runs of so many FLOPs take on an axis; None where fewer than two rungs say."""
    if axis == "flops":
        return log_flops
    known = [(rung.log_flops, rung.log_mean(axis)) for rung in curve.path]
    measured = [(x, y) for x, y in known if y is not None]
    if len(measured) < 2:
        return None
    x, y = np.array(measured, float).T
    draws = len(log_flops)
    y = y + _timing_noise(curve, axis, draws)
    inside = np.clip(log_flops, x[0], x[-1])
    at = np.clip(np.searchsorted(x, inside) - 1, 0, len(x) - 2)
    every = np.arange(draws)
    slopes = np.diff(y) / np.diff(x)
    between = y[every, at] + slopes[every, at] * (inside - x[at])
    mixing = np.random.default_rng(1).random(draws)
    after, before = (1 + mixing * (slopes[:, end] - 1) for end in (-1, 0))
    return between + after * np.maximum(log_flops - x[-1], 0.0) + before * np.minimum(log_flops - x[0], 0.0)


def _is_given(found: Fit, axis: Axis) -> bool:
    """Whether at least two rungs of every architecture say what they took on an axis."""
    return all(spent(curve, axis, np.zeros(1)) is not None for curve in found.curves.values())


def _timing_noise(curve: Curve, axis: Axis, draws: int) -> np.ndarray:
    """Draws x rungs: how far a rung's mean logarithm of hours or cost may be off, from its spread over the seeds."""
    squares, freedom, counts = 0.0, 0, []
    for rung in curve.path:
        values = np.log([value for row in rung.rows if (value := getattr(row, axis)) is not None])
        if len(values):
            counts.append(len(values))
            squares += float(((values - values.mean()) ** 2).sum())
            freedom += len(values) - 1
    if not freedom or not squares:
        return np.zeros((draws, len(counts)))
    rng = np.random.default_rng([2, len(counts)])
    spread = np.sqrt(squares / rng.chisquare(freedom, draws))
    return rng.standard_normal((draws, len(counts))) * spread[:, None] / np.sqrt(counts)


def both_reached(found: Fit) -> tuple[float, float] | None:
    """The lowest and the highest loss that every architecture's rungs reached; None where there is none."""
    ranges = [curve.loss_range for curve in found.curves.values()]
    low, high = max(one[0] for one in ranges), min(one[1] for one in ranges)
    return (low, high) if low <= high else None


def measured_losses(found: Fit) -> list[float]:
    """The mean losses of rungs that lie within what both reached, the lowest first."""
    common = both_reached(found)
    ends = {math.exp(rung.log_losses.mean()) for curve in found.curves.values() for rung in curve.path}
    return [] if common is None else sorted(loss for loss in ends if common[0] <= loss <= common[1])


def loss_at(
    found: Fit, architecture: str, flops: float, *, runs: int = 1, confidence: float = CONFIDENCE
) -> Estimate | None:
    """The mean validation loss that so many runs of so many FLOPs each will end with.

    None where that is not determined: beyond LIMIT times the largest rung's compute (or below the smallest's).
    """
    curve = found.curves[architecture]
    if not supported(curve, math.log(flops)):
        return None
    noise = np.random.default_rng(3).standard_normal(len(found.noise)) * found.noise / math.sqrt(runs)
    return estimate(curve.loss(math.log(flops)) * np.exp(noise), confidence)


def leverage_at(
    found: Fit,
    axis: Axis,
    loss: float,
    dense: str = "dense",
    mixture: str = "moe",
    *,
    confidence: float = CONFIDENCE,
) -> Estimate | None:
    """Leverage at a loss; None where the axis is not known or the loss is beyond what back-tests support."""
    draws = leverage_draws(found, axis, loss, dense, mixture)
    if draws is None:
        return None
    middles = [float(np.median(found.curves[name].log_flops(loss))) for name in (dense, mixture)]
    if not all(supported(found.curves[name], at) for name, at in zip((dense, mixture), middles, strict=True)):
        return None
    return estimate(np.exp(draws), confidence)


def supported(curve: Curve, log_flops: float) -> bool:
    """Whether back-tests support what is said at so many FLOPs: within LIMIT times those of the rungs."""
    return curve.first - math.log(LIMIT) <= log_flops <= curve.last + math.log(LIMIT)


def back_tests(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Each architecture's largest rung, predicted from all rows but its own; where enough rungs are left."""
    tests = []
    for name in architectures(rows):
        ladder = rungs(rows, name)
        if len(ladder) <= FEWEST_RUNGS:
            continue
        largest = set(map(id, ladder[-1].rows))
        left = fit([row for row in rows if id(row) not in largest], draws=2000)
        flops = math.exp(ladder[-1].log_flops)
        if (said := loss_at(left, name, flops, runs=len(ladder[-1].rows))) is not None:
            measured = math.exp(ladder[-1].log_losses.mean())
            tests.append({"architecture": name, "flops": flops, **_json(said, "predicted"), "measured": measured})
    return tests


def leverage_document(
    rows: Sequence[Row],
    *,
    dense: str | None = None,
    mixture: str | None = None,
    at_losses: Sequence[float] = (),
    predict: Sequence[float] = (),
    found: Fit | None = None,
) -> dict[str, Any]:
    """What `octavo leverage --json` prints; keys are only ever added to.

    `leverage` is read at `at_losses`, or where none are given at every rung's loss that both architectures reached;
    value, low and high are null where it is not determined. `found` is the fit of the rows, where it was made. Raises
    OctavoError for rows that cannot be fitted.
    """
    dense, mixture = choose(rows, dense, mixture)
    rows = [row for row in rows if row.architecture in (dense, mixture)]
    found = found or fit(rows)
    warnings = _of_rows(rows, found, dense, mixture)
    ratios = []
    if mixture is not None:
        axes: list[Axis] = [axis for axis in AXES if _is_given(found, axis)]
        for loss in at_losses or measured_losses(found):
            for axis in axes:
                said = leverage_at(found, axis, loss, dense, mixture)
                ratios.append({"axis": axis, "loss": loss, **_json(said, "value"), "interval": CONFIDENCE})
            warnings += _of_loss(found, loss, dense, mixture)
    carried = []
    for flops in predict:
        for name in found.curves:
            said = loss_at(found, name, flops)
            carried.append({
                "flops": flops, "architecture": name, **_json(said, "loss"), "determined": said is not None,
            })  # fmt: skip
            warnings += _of_flops(found.curves[name], name, flops)
    tests = back_tests(rows)
    for test in tests:
        if not test["low"] <= test["measured"] <= test["high"]:
            warnings.append(
                f"the largest rung of {test['architecture']} ended at {test['measured']:.4g}, and the other rungs "
                f"predict {test['low']:.4g} to {test['high']:.4g}: do not extrapolate this ladder"
            )
    return {
        "schema_version": SCHEMA_VERSION,
        "fit": _fit(found, dense, mixture, tests),
        "leverage": ratios,
        "extrapolation": carried,
        "warnings": warnings,
    }


def _json(said: Estimate | None, key: str) -> dict[str, float | None]:
    if said is None:
        return {key: None, "low": None, "high": None}
    return {key: said.value, "low": said.low, "high": said.high}


def _fit(found: Fit, dense: str, mixture: str | None, tests: list[dict[str, Any]]) -> dict[str, Any]:
    def middle(draws: np.ndarray) -> dict[str, float | None]:
        return _json(estimate(draws), "value")

    names = ("gamma",) if found.terms == 1 else ("alpha", "beta")
    common = both_reached(found) if mixture is not None else None
    return {
        "form": "L(C) = E + A C^-gamma" if found.terms == 1 else "L(N, D) = E + A N^-alpha + B D^-beta",
        "dense": dense,
        "mixture": mixture,
        "both_reached": None if common is None else {"low": common[0], "high": common[1]},
        "noise": middle(found.noise),
        "limit": LIMIT,
        "interval": CONFIDENCE,
        "draws": len(found.noise),
        "architectures": {
            name: {
                "E": middle(curve.irreducible),
                **{one: middle(curve.exponents[:, term]) for term, one in enumerate(names)},
                "rungs": len(curve.rungs),
                "runs": sum(len(rung.rows) for rung in curve.rungs),
                "flops": {"low": math.exp(curve.first), "high": math.exp(curve.last)},
                "loss": dict(zip(("low", "high"), curve.loss_range, strict=True)),
            }
            for name, curve in found.curves.items()
        },
        "back_tests": tests,
    }


def _of_rows(rows: Sequence[Row], found: Fit, dense: str, mixture: str | None) -> list[str]:
    """What limits the fit, as sentences."""
    said = []
    if max(len(rung.rows) for curve in found.curves.values() for rung in curve.rungs) == 1:
        said.append(
            "every rung has one run: how much a seed changes is taken from the distances to the fit and from what is "
            "usual, about 0.3 % of the loss"
        )
    if few := [name for name, curve in found.curves.items() if len(curve.rungs) == FEWEST_RUNGS]:
        said.append(f"{' and '.join(few)}: {FEWEST_RUNGS} rungs hardly tell the loss that no compute removes")
    for row in found.down_weighted:
        said.append(
            f"a run of {row.architecture} with {row.flops:.3g} FLOPs and a loss of {row.validation_loss:.4g} lies far "
            "off the fit and counts less"
        )
    for name, curve in found.curves.items():
        means = [rung.log_losses.mean() for rung in curve.path]
        if any(later >= earlier for earlier, later in pairwise(means)):
            said.append(f"the loss of {name} does not fall with compute")
    if mixture is None:
        return [*said, f"all rows are of {dense}: there is nothing to hold it against, so no leverage"]
    return [*said, *_of_pair(rows, found, dense, mixture)]


def _of_pair(rows: Sequence[Row], found: Fit, dense: str, mixture: str) -> list[str]:
    """What limits the comparison, as sentences."""
    said = []
    ratios = [_tokens_per_parameter(found.curves[name]) for name in (dense, mixture)]
    known = [ratio for ratio in ratios if ratio is not None]
    if len(known) < 2:
        said.append("tokens per parameter are not known: whether both were trained alike is not checked")
    elif max(known) > UNEQUAL_TOKENS * min(known):
        said.append(
            f"tokens per active parameter differ: {known[0]:.3g} ({dense}), {known[1]:.3g} ({mixture}); the leverage "
            "is that of the architecture and of these lengths together"
        )
    for axis in AXES[1:]:
        missing = sum(getattr(row, axis) is None for row in rows)
        if not _is_given(found, axis):
            said.append(f"{axis} is not given for two rungs of each architecture: no leverage in {WORDS[axis]}")
        elif missing:
            said.append(f"{missing} of {len(rows)} rows have no {axis}")
    common = both_reached(found)
    if common is None:
        said.append("the architectures reached no loss in common: leverage at any loss is an extrapolation")
    elif len(measured_losses(found)) < 3:
        said.append(f"the architectures' losses barely overlap: both reached {common[0]:.4g} to {common[1]:.4g}")
    return said


def _tokens_per_parameter(curve: Curve) -> float | None:
    known = [(rung.log_mean("tokens"), rung.log_mean("active_parameters")) for rung in curve.path]
    ratios = [tokens - size for tokens, size in known if tokens is not None and size is not None]
    return math.exp(float(np.mean(ratios))) if ratios else None


def _of_loss(found: Fit, loss: float, dense: str, mixture: str) -> list[str]:
    said = []
    for name in (dense, mixture):
        curve = found.curves[name]
        at = float(np.median(curve.log_flops(loss)))
        if not supported(curve, at):
            said.append(
                f"leverage at a loss of {loss:g} is not determined: {name} would need more than {LIMIT:g} times (or "
                f"less than 1/{LIMIT:g} of) the compute of its rungs"
            )
        elif not curve.loss_range[0] * (1 - 1e-9) <= loss <= curve.loss_range[1] * (1 + 1e-9):
            said.append(f"leverage at a loss of {loss:g} is extrapolated: {name} reached "
                        f"{curve.loss_range[0]:.4g} to {curve.loss_range[1]:.4g}")  # fmt: skip
    return said


def _of_flops(curve: Curve, name: str, flops: float) -> list[str]:
    times = flops / math.exp(curve.last)
    if not supported(curve, math.log(flops)):
        return [
            f"the loss of {name} at {flops:.3g} FLOPs is not determined: that is {times:.3g} times the compute of its "
            f"largest rung, and back-tests support up to {LIMIT:g} times"
        ]
    if times > FAR:
        return [f"the loss of {name} at {flops:.3g} FLOPs is extrapolated {times:.3g} times beyond its largest rung"]
    return []
